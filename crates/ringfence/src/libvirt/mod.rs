//! Limits out of a domain of libvirt.
//!
//! <https://libvirt.org/formatdomain.html>: `cputune`, `memtune`, `blkiotune`, `numatune`, and what `vcpu` says of CPUs.

mod bandwidth;
mod bounds;
mod section;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

use self::bandwidth::Bandwidth;
use self::section::{Section, child, set, text, whole};
use crate::devices::DeviceNumber;
use crate::document;
use crate::resources::{Cpu, CpuSet, Limit, Resources};
use crate::{EachThread, Error, ErrorKind, Mode, Report, Result};

/// From here on a size is no limit (`VIR_DOMAIN_MEMORY_PARAM_UNLIMITED`, in bytes).
const UNLIMITED: u64 = ((1 << 53) - 1) << 10;

/// What libvirt takes for `cputune.shares` on cgroup v1; the kernel's default is 1024.
const V1_SHARES: RangeInclusive<u64> = 2..=262_144;

/// What libvirt takes for `cputune.shares` on cgroup v2; the kernel's default is 100.
const V2_WEIGHTS: RangeInclusive<u64> = 1..=10_000;

/// What libvirt's XML of a domain says of its resources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibvirtDomain {
    /// The virtual machine: memory, block devices, shares, memory nodes of the whole; quota, period and CPUs of all its
    /// vCPUs together.
    pub resources: Resources,
    /// `shares` of a domain on cgroup v2, where libvirt writes them to `cpu.weight`. `resources` has them on OCI's scale.
    pub cpu_weight: Option<u64>,
    /// What is not a vCPU (libvirt's emulator): quota, period and CPUs.
    pub overhead: Cpu,
    /// Limits of each vCPU and of each I/O thread by itself: `quota`, `iothread_quota`.
    pub each: EachThread,
    /// How many vCPUs are there at the start.
    pub vcpus: u32,
    /// The CPUs of single vCPUs, by number.
    pub vcpu_pins: BTreeMap<u32, CpuSet>,
    /// The CPUs of single I/O threads, by libvirt's ID.
    pub io_thread_pins: BTreeMap<u32, CpuSet>,
}

impl LibvirtDomain {
    /// [`LibvirtDomain::from_xml_of`] a host that is not known: the report says what is assumed of it.
    ///
    /// # Errors
    /// Those of [`LibvirtDomain::from_xml_of`].
    pub fn from_xml(xml: &str, device: impl Fn(&Path) -> Option<DeviceNumber>) -> Result<(Self, Report)> {
        Self::from_xml_of(None, xml, device)
    }

    /// Reads a domain's XML, as `virsh dumpxml` prints it. `device` finds the device node at a path.
    ///
    /// `host` is the cgroup mode of the host that the domain runs on, which the XML does not say and which decides the scale
    /// of `cputune.shares`: 2 to 262144 with a default of 1024 on v1 and hybrid hosts, 1 to 10000 with a default of 100 on v2.
    /// Without it, shares that v1 has are read as v1's, and the report has a line.
    ///
    /// The report has what is no limit of a cgroup, or has no place in [`LibvirtDomain::resources`].
    ///
    /// # Errors
    /// It is no XML, or no domain; or a value that libvirt would not take: the error names its element, as in
    /// `memtune.hard_limit`.
    ///
    /// ```
    /// use ringfence::{LibvirtDomain, Mode};
    ///
    /// let xml = "<domain><cputune><shares>200</shares></cputune></domain>";
    /// let (domain, report) = LibvirtDomain::from_xml_of(Some(Mode::V2), xml, |_| None)?;
    /// assert_eq!((domain.resources.cpu.shares, report.is_empty()), (Some(2048), true));
    /// assert_eq!(domain.into_v2_resources().unified["cpu.weight"], "200");
    /// # Ok::<(), ringfence::Error>(())
    /// ```
    pub fn from_xml_of(
        host: Option<Mode>,
        xml: &str,
        device: impl Fn(&Path) -> Option<DeviceNumber>,
    ) -> Result<(Self, Report)> {
        let refused = |why: String| Error::new(ErrorKind::InvalidInput, why);
        document::check_length(xml)
            .and_then(|()| bounds::check(xml))
            .map_err(|error| refused(format!("this is not the XML of a domain: {}", error.message())))?;
        let options =
            ParsingOptions { allow_dtd: false, nodes_limit: bounds::MOST_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(xml, options)
            .map_err(|error| refused(format!("this is not the XML of a domain: {error}")))?;
        let root = document.root_element();
        // The files of a running libvirt, and its snapshots, have it inside of something else.
        let domain = if root.tag_name().name() == "domain" { Some(root) } else { child(root, "domain") };
        let domain = domain.ok_or_else(|| {
            refused(format!("this is not the XML of a domain: it begins with <{}>", root.tag_name().name()))
        })?;
        let (mut read, mut report) = (Self::default(), Report::default());
        let places = read.vcpu(domain, &mut report)?;
        let mut assumed = Report::default();
        if let Some(section) = Section::of(domain, "cputune")? {
            read.shares(section, host, &mut assumed)?;
            read.bandwidth(section, &mut report)?;
            read.pins(section, &places, &mut report)?;
            report_others(section, &mut report);
        } else {
            read.resources.cpu.cpus.clone_from(&places.default);
            read.overhead.cpus = places.default;
        }
        if let Some(section) = Section::of(domain, "memtune")? {
            read.memory(section, &mut report)?;
        }
        if let Some(section) = Section::of(domain, "blkiotune")? {
            read.block_io(section, device, &mut report)?;
        }
        if let Some(section) = Section::of(domain, "numatune")? {
            read.numa(section, &mut report)?;
        }
        if let Some(partition) = child(domain, "resource").and_then(|resource| child(resource, "partition")) {
            report.note(
                "resource.partition",
                text(partition),
                "where the sandbox is to be is said with --path",
            );
        }
        report.append(assumed);
        Ok((read, report))
    }

    /// The resources for a host of cgroup v2, where libvirt's soft limit is `memory.high`, and not the protection
    /// (`memory.low`) that OCI's reservation is, and where shares of a v2 host are `cpu.weight` as they are.
    pub fn into_v2_resources(self) -> Resources {
        let mut resources = self.resources;
        if let Some(weight) = self.cpu_weight {
            resources.cpu.shares = None;
            resources.unified.insert("cpu.weight".to_owned(), weight.to_string());
        }
        if let Some(soft) = resources.memory.reservation.take() {
            resources.unified.insert("memory.high".to_owned(), soft.to_string());
        }
        resources
    }

    fn vcpu(&mut self, domain: Node<'_, '_>, report: &mut Report) -> Result<Places> {
        let vcpu = child(domain, "vcpu");
        let count = |setting: &'static str, text: &str| {
            let number =
                whole(text).and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
            number.ok_or_else(|| Error::invalid(setting, text, "takes a whole number from 1 on"))
        };
        let most = vcpu.map_or(Ok(1), |vcpu| count("vcpu", &text(vcpu)))?;
        self.vcpus = most;
        if let Some(current) = vcpu.and_then(|vcpu| vcpu.attribute("current")) {
            self.vcpus = count("vcpu.current", current)?;
        } else if let Some(vcpus) = child(domain, "vcpus") {
            let enabled = vcpus.children().filter(|vcpu| vcpu.attribute("enabled") == Some("yes")).count();
            self.vcpus = count("vcpus", &enabled.to_string())?;
        }
        if self.vcpus > most {
            return Err(Error::invalid(
                "vcpu.current",
                self.vcpus,
                format!("there are {most} vCPUs at most"),
            ));
        }
        let placement = vcpu.and_then(|vcpu| vcpu.attribute("placement")).unwrap_or("static");
        match placement {
            "static" => {}
            "auto" => {
                let why =
                    "numad chooses the CPUs when libvirt starts the machine: pass those with --cpuset-cpus";
                report.add("vcpu.placement", placement, why);
            }
            _ => return Err(Error::invalid("vcpu.placement", placement, "takes static or auto")),
        }
        let mut default = None;
        if let Some(cpuset) = vcpu.and_then(|vcpu| vcpu.attribute("cpuset")) {
            let cpus = set("vcpu.cpuset", cpuset)?;
            if placement == "auto" {
                report.note("vcpu.cpuset", cpuset, "libvirt ignores it, because the placement is automatic");
            } else {
                default = Some(cpus);
            }
        }
        Ok(Places { most, default })
    }

    /// `shares`, which libvirt writes as they are: to `cpu.shares` on v1, to `cpu.weight` on v2.
    fn shares(&mut self, section: Section<'_>, host: Option<Mode>, report: &mut Report) -> Result<()> {
        let is_v2 = host.map(|host| host == Mode::V2);
        let allowed = match is_v2 {
            Some(true) => V2_WEIGHTS,
            Some(false) => V1_SHARES,
            None => *V2_WEIGHTS.start()..=*V1_SHARES.end(),
        };
        let Some(shares) = section.number("shares", allowed)? else { return Ok(()) };
        let is_v2 = is_v2.unwrap_or_else(|| {
            let is_v2 = !V1_SHARES.contains(&shares);
            if V1_SHARES.contains(&shares) && V2_WEIGHTS.contains(&shares) {
                let why = "read as cgroup v1's (default 1024), and the XML does not say on which host it is: pass \
                           --libvirt-host v1, or v2 if its default is 100";
                report.add("cputune.shares", shares, why);
            }
            is_v2
        });
        self.cpu_weight = is_v2.then_some(shares);
        // The same ratio to the default.
        let to_oci = |weight: u64| (weight * 1024).div_ceil(100);
        self.resources.cpu.shares = Some(if is_v2 { to_oci(shares) } else { shares });
        Ok(())
    }

    /// The quotas. libvirt's `quota` is for each vCPU by itself, ours for all of them together; `global_quota` is for the
    /// whole domain. The smaller one of both is what the vCPUs can have.
    fn bandwidth(&mut self, section: Section<'_>, report: &mut Report) -> Result<()> {
        let each = Bandwidth::read(section, "period", "quota")?;
        let global = Bandwidth::read(section, "global_period", "global_quota")?;
        let emulator = Bandwidth::read(section, "emulator_period", "emulator_quota")?;
        let io_thread = Bandwidth::read(section, "iothread_period", "iothread_quota")?;
        let mut together = each;
        if let Some(Limit::Value(quota)) = each.quota {
            let all = quota.checked_mul(self.vcpus.into()).filter(|all| *all <= bandwidth::LONGEST_QUOTA_US);
            let all = all.ok_or_else(|| {
                let why = format!("times {} vCPUs it is more than the kernel can reckon with", self.vcpus);
                Error::invalid("cputune.quota", quota, why)
            })?;
            together.quota = Some(Limit::Value(all));
            if self.vcpus > 1 {
                let why = format!(
                    "is for each vCPU: the {} of them have {all} together; --cpus-per-vcpu {} holds each to its own",
                    self.vcpus,
                    each.cpus()
                );
                report.note("cputune.quota", quota, why);
            }
        }
        let is_global = global.is_below(together) || global.says_something() && !each.says_something();
        if let Some(Limit::Value(_)) = global.quota {
            if is_global {
                let why =
                    "is for the whole with --overhead together; else for the vCPUs, without the overhead";
                report.note("cputune.global_quota", global, why);
                if let Some(Limit::Value(_)) = each.quota {
                    let why = format!(
                        "is more than cputune.global_quota leaves: --cpus-per-vcpu {} holds each vCPU to its own",
                        each.cpus()
                    );
                    report.note("cputune.quota", together, why);
                }
            } else {
                let why = "the quota of the vCPUs is not above it and holds; the overhead is not held to the rest of it";
                report.add("cputune.global_quota", global, why);
            }
        }
        let cpu = &mut self.resources.cpu;
        let chosen = if is_global { global } else { together };
        (cpu.quota, cpu.period) = (chosen.quota, chosen.period);
        (self.each.vcpu.cpu.quota, self.each.vcpu.cpu.period) = (each.quota, each.period);
        (self.each.iothread.cpu.quota, self.each.iothread.cpu.period) = (io_thread.quota, io_thread.period);
        (self.overhead.quota, self.overhead.period) = (emulator.quota, emulator.period);
        if let Some(Limit::Value(_)) = emulator.quota {
            let why = format!("is for the overhead: --overhead-cpus {}", emulator.cpus());
            report.add("cputune.emulator_quota", emulator, why);
        }
        if let Some(Limit::Value(_)) = io_thread.quota {
            let why = format!("is for each I/O thread: --cpus-per-iothread {}", io_thread.cpus());
            report.add("cputune.iothread_quota", io_thread, why);
        }
        Ok(())
    }

    /// CPUs: those of all vCPUs, where every one of them is held to some.
    fn pins(&mut self, section: Section<'_>, places: &Places, report: &mut Report) -> Result<()> {
        self.vcpu_pins = pins(section, "vcpupin", "vcpu")?;
        self.io_thread_pins = pins(section, "iothreadpin", "iothread")?;
        let beyond = self.vcpu_pins.split_off(&places.most);
        for (vcpu, cpus) in beyond {
            report.note(format!("cputune.vcpupin.{vcpu}"), cpus, "there is no such vCPU");
        }
        let is_each_pinned = u32::try_from(self.vcpu_pins.len()) == Ok(places.most);
        let pinned = self.vcpu_pins.values().fold(CpuSet::new(), |all, cpus| all.union(cpus));
        let all = match &places.default {
            _ if is_each_pinned => Some(pinned),
            Some(default) => Some(pinned.union(default)),
            // The others may run anywhere.
            None => None,
        };
        for (vcpu, cpus) in &self.vcpu_pins {
            if Some(cpus) != all.as_ref() {
                let why = match &all {
                    Some(all) => format!("the vCPUs have one set of CPUs, {all}; --pin gives each a CPU"),
                    None => {
                        "not every vCPU is held to some CPUs, and they have one set; --pin gives each a CPU"
                            .to_owned()
                    }
                };
                report.add(format!("cputune.vcpupin.{vcpu}"), cpus, why);
            }
        }
        self.overhead.cpus.clone_from(&places.default);
        if let Some(pin) = section.one("emulatorpin")? {
            self.overhead.cpus = Some(cpus_of(pin, "cputune.emulatorpin")?);
        }
        if let Some(cpus) = self.overhead.cpus.as_ref().filter(|cpus| Some(*cpus) != all.as_ref()) {
            report.add("cputune.emulatorpin", cpus, "the overhead has no set of CPUs of its own");
        }
        for (id, cpus) in &self.io_thread_pins {
            let why = "I/O threads have no set of CPUs of their own: they are part of the overhead";
            report.add(format!("cputune.iothreadpin.{id}"), cpus, why);
        }
        self.resources.cpu.cpus = all;
        Ok(())
    }

    fn memory(&mut self, section: Section<'_>, report: &mut Report) -> Result<()> {
        // What is no limit is not written.
        let limit = |name| Ok(section.size(name)?.filter(|bytes| *bytes < UNLIMITED).map(Limit::Value));
        let memory = &mut self.resources.memory;
        memory.limit = limit("hard_limit")?;
        memory.reservation = limit("soft_limit")?;
        memory.swap = limit("swap_hard_limit")?;
        if let Some(swap) = memory.swap {
            let refused = |why| Error::invalid("memtune.swap_hard_limit", swap, why);
            match memory.limit {
                None => {
                    return Err(refused("is memory plus swap, in bytes: a hard_limit has to be beside it"));
                }
                Some(limit) if swap < limit => {
                    return Err(refused("is memory plus swap, in bytes: it cannot be less than hard_limit"));
                }
                Some(_) => {}
            }
        }
        if let Some(bytes) = section.size("min_guarantee")? {
            let why = "no hypervisor with cgroups gives it; on cgroup v2 memory.min does (--unified memory.min=BYTES)";
            report.add("memtune.min_guarantee", bytes, why);
        }
        report_unknown(section, &["hard_limit", "soft_limit", "swap_hard_limit", "min_guarantee"], report);
        Ok(())
    }

    fn block_io(
        &mut self,
        section: Section<'_>,
        device: impl Fn(&Path) -> Option<DeviceNumber>,
        report: &mut Report,
    ) -> Result<()> {
        const KNOWN: [&str; 6] =
            ["path", "weight", "read_bytes_sec", "write_bytes_sec", "read_iops_sec", "write_iops_sec"];
        let block_io = &mut self.resources.block_io;
        block_io.weight = section.number("weight", 10..=1000)?;
        let mut seen = BTreeSet::new();
        for node in section.all("device") {
            let path = child(node, "path").map(text).filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| Error::invalid("blkiotune.device", "", "a device has a path"))?;
            let number = |name: &'static str, most: u64| {
                let setting = format!("blkiotune.device.{name}");
                let least = if name == "weight" { 10 } else { 1 };
                let found =
                    child(node, name).map(|node| section::number(&setting, &text(node), least..=most));
                Ok::<_, Error>(found.transpose()?.flatten())
            };
            let weight = number("weight", 1000)?;
            let read_bytes = number("read_bytes_sec", u64::MAX)?;
            let write_bytes = number("write_bytes_sec", u64::MAX)?;
            let read_ios = number("read_iops_sec", u32::MAX.into())?;
            let write_ios = number("write_iops_sec", u32::MAX.into())?;
            for unknown in node.children().filter(|child| child.is_element()) {
                let name = unknown.tag_name().name();
                if !KNOWN.contains(&name) {
                    report.add(format!("blkiotune.device.{name}"), text(unknown), "is not known");
                }
            }
            let Some(disk) = device(Path::new(&path)) else {
                report.add("blkiotune.device", path, "there is no block device at this path");
                continue;
            };
            if !seen.insert(disk) {
                return Err(Error::invalid("blkiotune.device", path, "the device is given twice"));
            }
            if weight.is_some() {
                block_io.weight_device.entry(disk).or_default().weight = weight;
            }
            for (throttle, rate) in [
                (&mut block_io.throttle_read_bps_device, read_bytes),
                (&mut block_io.throttle_write_bps_device, write_bytes),
                (&mut block_io.throttle_read_iops_device, read_ios),
                (&mut block_io.throttle_write_iops_device, write_ios),
            ] {
                throttle.extend(rate.map(|rate| (disk, Limit::Value(rate))));
            }
        }
        report_unknown(section, &["weight", "device"], report);
        Ok(())
    }

    fn numa(&mut self, section: Section<'_>, report: &mut Report) -> Result<()> {
        if let Some(memory) = section.one("memory")? {
            let nodes =
                memory.attribute("nodeset").map(|nodes| set("numatune.memory.nodeset", nodes)).transpose()?;
            let mode = memory.attribute("mode").unwrap_or("strict");
            let said = memory.attribute("nodeset").unwrap_or(mode);
            if memory.attribute("placement") == Some("auto") {
                report.add(
                    "numatune.memory",
                    said,
                    "an automatic placement asks numad at the start of the machine",
                );
            } else {
                match mode {
                    "strict" | "restrictive" => self.resources.cpu.mems = nodes,
                    "preferred" | "interleave" => {
                        let why = format!("{mode} is a policy of the process (numactl(8)): no cgroup has it");
                        report.add("numatune.memory", said, why);
                    }
                    _ => {
                        let allowed = "takes strict, restrictive, preferred or interleave";
                        return Err(Error::invalid("numatune.memory.mode", mode, allowed));
                    }
                }
            }
        }
        for cell in section.all("memnode") {
            let nodes = cell.attribute("nodeset").unwrap_or_default();
            report.add(
                "numatune.memnode",
                nodes,
                "memory of one node of the guest: no cgroup tells it apart",
            );
        }
        report_unknown(section, &["memory", "memnode"], report);
        Ok(())
    }
}

/// Which vCPUs there can be, and where they run unless something else is said of them.
struct Places {
    most: u32,
    default: Option<CpuSet>,
}

fn cpus_of(node: Node<'_, '_>, setting: &str) -> Result<CpuSet> {
    set(setting, node.attribute("cpuset").unwrap_or_default())
}

fn pins(section: Section<'_>, name: &'static str, key: &'static str) -> Result<BTreeMap<u32, CpuSet>> {
    let (setting, mut pins) = (section.setting(name), BTreeMap::new());
    for pin in section.all(name) {
        let id = pin.attribute(key).unwrap_or_default();
        let refused = |why: &'static str| Error::invalid(format!("{setting}.{key}"), id, why);
        let number =
            whole(id).and_then(|id| u32::try_from(id).ok()).ok_or_else(|| refused("takes a whole number"))?;
        if pins.insert(number, cpus_of(pin, &setting)?).is_some() {
            return Err(refused("is given twice"));
        }
    }
    Ok(pins)
}

/// What else `cputune` may say.
fn report_others(section: Section<'_>, report: &mut Report) {
    for (names, why) in [
        (
            ["vcpusched", "iothreadsched", "emulatorsched"].as_slice(),
            "no cgroup has a scheduling policy: see chrt(1)",
        ),
        (
            ["cachetune", "memorytune"].as_slice(),
            "caches and their bandwidth are divided by resctrl, and no cgroup",
        ),
    ] {
        for name in names {
            for node in section.all(name) {
                let said: Vec<String> =
                    node.attributes().map(|given| format!("{}={}", given.name(), given.value())).collect();
                report.add(section.setting(name), said.join(" "), why);
            }
        }
    }
    const KNOWN: [&str; 17] = [
        "shares",
        "period",
        "quota",
        "global_period",
        "global_quota",
        "emulator_period",
        "emulator_quota",
        "iothread_period",
        "iothread_quota",
        "vcpupin",
        "emulatorpin",
        "iothreadpin",
        "vcpusched",
        "iothreadsched",
        "emulatorsched",
        "cachetune",
        "memorytune",
    ];
    report_unknown(section, &KNOWN, report);
}

fn report_unknown(section: Section<'_>, known: &[&str], report: &mut Report) {
    for name in section.others(known) {
        report.add(section.setting(name), "", "is not known");
    }
}

#[cfg(test)]
mod tests;
