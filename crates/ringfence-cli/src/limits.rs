//! What a sandbox should be: the options of `create`, `run` and `plan`, and the limits, which `set` has too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches};
use nix::errno::Errno;
use nix::unistd::{Group, User};
use ringfence::devices::DeviceKind;
use ringfence::resources::{Cpu, SpecFile, parse_cpus, parse_limit};
use ringfence::{
    CgroupPath, CpuSet, DeviceNode, DeviceRule, EachThread, Error, ErrorKind, Limit, Overhead, Pin, Profile,
    Report, Resources, Result, SandboxConfig, SandboxId, ThreadNames, VcpuHints, read_document,
};

use crate::context::{Context, Driver};

/// Everything that can be said about a sandbox before it exists.
#[derive(Debug, Args)]
pub struct Wanted {
    #[command(flatten)]
    pub creation: Creation,

    /// Take path and resources from an OCI config.json; other options win over its fields; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "resources", help_heading = "Documents")]
    pub spec: Option<PathBuf>,

    #[command(flatten)]
    pub limits: Limits,

    #[command(flatten)]
    pub devices: DeviceOptions,
}

/// What belongs to the creation of a sandbox alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sandbox")]
pub struct Creation {
    /// Path of the cgroup: /a/b below the root, a/b below the parent, or slice:prefix:name for a unit of systemd (no
    /// slice: system.slice, or of a user's manager user.slice; - is the root slice) [default: ringfence.slice:ringfence:ID
    /// where systemd is process 1, else the ID]
    #[arg(long, value_name = "CGROUPSPATH")]
    pub path: Option<CgroupPath>,

    /// Parent of paths that do not begin with / [default: /ringfence; rootless: ringfence below what is delegated]
    #[arg(long, value_parser = parent, value_name = "PATH")]
    pub parent: Option<CgroupPath>,

    /// Put this before the last component of the path (Kata: kata_) [default: nothing]
    #[arg(long, value_name = "TEXT")]
    pub name_prefix: Option<String>,

    /// Allow what a hypervisor opens: none, default (any), qemu, cloud-hypervisor, firecracker, kata [default: default]
    #[arg(long)]
    pub profile: Option<Profile>,

    /// Where the hypervisor's own threads and its helpers are: together with the guest's CPUs; nested in a part of their own, so
    /// that --cpus and --cpuset-cpus hold for the guest's CPUs alone; or separate=PATH, a cgroup of their own elsewhere (on
    /// cgroup v2 for helper processes alone) [default: nested for the profile of a hypervisor, else together]
    #[arg(long, value_name = "WHERE", value_parser = overhead)]
    pub overhead: Option<Overhead>,

    #[command(flatten)]
    pub vcpus: VcpuOptions,

    /// Pin each of the guest's CPUs to a CPU of its own: while --cpuset-cpus has as many as the guest (matching, if nothing is
    /// said); or to as many of them as no other sandbox is pinned to (exclusive)
    #[arg(
        long,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "matching"
    )]
    pub pin: Option<Pin>,

    /// Delegate the cgroup to a user, who may then make cgroups below it: UID:GID or names; USER alone takes the group along
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    pub owner: Option<(u32, u32)>,

    /// On cgroup v2, in a container or where a cgroup is delegated to this user: move the processes of the namespace's
    /// root, or of that cgroup, to a leaf, so that limits are possible
    #[arg(long)]
    pub evacuate: bool,

    /// Allow a path inside another sandbox's cgroup, which is then not removed before this one
    #[arg(long)]
    pub allow_nested: bool,
}

/// How the threads of the guest's CPUs are found.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sandbox")]
pub struct VcpuOptions {
    /// How many CPUs the guest has: as many threads are waited for [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,

    /// Ask QEMU for them, by the socket of its monitor: -qmp unix:SOCKET,server=on,wait=off
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,

    /// Know them by name: as qemu (debug-threads=on), cloud-hypervisor, firecracker, stratovirt, crosvm, openvmm or
    /// dragonball names them, or a pattern with {} for the number, such as vcpu{} [default: the profile's]
    #[arg(long, value_name = "NAME|PATTERN", conflicts_with = "qmp")]
    vmm: Option<ThreadNames>,
}

impl VcpuOptions {
    pub fn hints(&self) -> VcpuHints {
        let mut hints = VcpuHints::default();
        // Absolute, because later commands look for the socket from another working directory.
        let socket = self.qmp.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        (hints.count, hints.qmp, hints.names) = (self.vcpus, socket, self.vmm.clone());
        hints
    }
}

/// Refuses a path that is not the driver's.
fn fits_driver(driver: Driver, path: &CgroupPath) -> Result<()> {
    match driver {
        Driver::Auto => {}
        Driver::Cgroupfs => drop(path.for_cgroupfs()?),
        Driver::Systemd => drop(path.for_systemd()?),
    }
    Ok(())
}

/// `UID:GID`, by number or by name; `USER` with the group that it has in the user database.
fn owner(text: &str) -> Result<(u32, u32)> {
    let refused = |why: &'static str| Error::invalid("owner", text, why);
    let found = |who: Result<Option<User>, Errno>| who.ok().flatten();
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, known) = match user.parse::<u32>() {
        Ok(uid) => (uid, found(User::from_uid(uid.into()))),
        Err(_) => {
            let known = found(User::from_name(user)).ok_or_else(|| refused("there is no such user"))?;
            (known.uid.as_raw(), Some(known))
        }
    };
    let gid = match group.map(|group| (group, group.parse::<u32>())) {
        Some((_, Ok(gid))) => gid,
        Some((group, Err(_))) => {
            let known = Group::from_name(group).ok().flatten();
            known.ok_or_else(|| refused("there is no such group"))?.gid.as_raw()
        }
        None => {
            let why = "takes UID:GID: the user database does not say which group this user has";
            known.ok_or_else(|| refused(why))?.gid.as_raw()
        }
    };
    // What chown(2) takes for "leave alone".
    if uid == u32::MAX || gid == u32::MAX {
        return Err(refused("4294967295 is nobody's number"));
    }
    Ok((uid, gid))
}

fn parent(text: &str) -> Result<CgroupPath> {
    text.parse().map_err(|error: Error| error.with_setting("parent"))
}

fn overhead(text: &str) -> Result<Overhead> {
    match text {
        "together" => Ok(Overhead::Together),
        "nested" => Ok(Overhead::Nested),
        other => match other.strip_prefix("separate=") {
            Some(path) => path
                .parse()
                .map(Overhead::Separate)
                .map_err(|error: Error| error.with_setting("overhead").with_value(text)),
            None => Err(Error::invalid("overhead", other, "together, nested or separate=PATH")),
        },
    }
}

impl Creation {
    /// Whether it is only about paths, where nobody has asked for a unit.
    fn is_for_paths(&self, driver: Driver) -> bool {
        driver != Driver::Systemd && (self.parent.is_some() || self.name_prefix.is_some())
    }

    /// Refuses a path that is not the driver's, and what only makes sense for the other one.
    fn fits(&self, driver: Driver, path: &CgroupPath) -> Result<()> {
        fits_driver(driver, path)?;
        let why = "is for paths of cgroups, and this is a unit of systemd";
        match (&self.parent, &self.name_prefix) {
            (Some(parent), _) if path.is_systemd() => Err(Error::invalid("parent", parent, why)),
            (_, Some(prefix)) if path.is_systemd() => Err(Error::invalid("name-prefix", prefix, why)),
            _ => Ok(()),
        }
    }

    /// The first of these options that was given.
    pub fn given(&self) -> Option<&'static str> {
        let Self { path, parent, name_prefix, profile, overhead, vcpus, pin, owner, evacuate, allow_nested } =
            self;
        let VcpuOptions { vcpus, qmp, vmm } = vcpus;
        let given = [
            ("--path", path.is_some()),
            ("--parent", parent.is_some()),
            ("--name-prefix", name_prefix.is_some()),
            ("--profile", profile.is_some()),
            ("--overhead", overhead.is_some()),
            ("--vcpus", vcpus.is_some()),
            ("--qmp", qmp.is_some()),
            ("--vmm", vmm.is_some()),
            ("--pin", pin.is_some()),
            ("--owner", owner.is_some()),
            ("--evacuate", *evacuate),
            ("--allow-nested", *allow_nested),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }
}

/// Limits, from a document and from options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Take resources from an OCI LinuxResources object; other options win over its fields; - is standard input
    #[arg(long, value_name = "FILE", help_heading = "Documents")]
    pub resources: Option<PathBuf>,

    /// Most memory: bytes, or with K, M, G, T (powers of 1024); or max
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_limit("memory.limit", text))]
    memory: Option<Limit>,

    /// Memory that is kept from reclaim while there is other: bytes, or with K, M, G, T; or max
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_limit("memory.reservation", text))]
    memory_reservation: Option<Limit>,

    /// Most memory plus swap, as in OCI: bytes, or with K, M, G, T; or max
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_limit("memory.swap", text))]
    memory_swap: Option<Limit>,

    /// Most CPU time: CPUs with fractions, kept over periods of 100 ms; or max
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<Limit>,

    /// Most CPU time of the overhead, where it is nested or separate: CPUs with fractions; or max
    #[arg(long, value_name = "N", value_parser = cpus)]
    overhead_cpus: Option<Limit>,

    /// Most CPU time of each vCPU by itself, where the overhead is nested: CPUs with fractions; or max
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus_per_vcpu: Option<Limit>,

    /// Most CPU time of each I/O thread by itself, where QEMU tells which they are: CPUs with fractions; or max
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus_per_iothread: Option<Limit>,

    /// Most memory of the overhead, where it is separate: bytes, or with K, M, G, T; or max
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_limit("memory.limit", text))]
    overhead_memory: Option<Limit>,

    /// Share of CPU time beside others, 2 to 262144 (cgroup v1's scale) [kernel's default: 1024]
    #[arg(long, value_name = "N", conflicts_with = "cpu_weight", value_parser = |text: &str| number("cpu.shares", text))]
    cpu_shares: Option<u64>,

    /// Share of CPU time beside others, 1 to 10000 (cgroup v2's scale) [kernel's default: 100]
    #[arg(long, value_name = "N", value_parser = |text: &str| number("cpu.weight", text))]
    cpu_weight: Option<u64>,

    /// CPU time that may be saved up while idle, in microseconds, at most the quota; 0 for none [default: the quota of one
    /// period, so that vCPUs that are all busy for a moment are not all stopped at once; with --profile none: none]
    #[arg(long, value_name = "USEC", value_parser = |text: &str| number("cpu.burst", text))]
    cpu_burst: Option<u64>,

    /// CPUs to run on, such as 0-3,8; or max, to follow the parent
    #[arg(long, value_name = "LIST", value_parser = |text: &str| set("cpu.cpus", text))]
    cpuset_cpus: Option<CpuSet>,

    /// Memory nodes to allocate from, such as 0; or max, to follow the parent
    #[arg(long, value_name = "LIST", value_parser = |text: &str| set("cpu.mems", text))]
    cpuset_mems: Option<CpuSet>,

    /// Most tasks (processes and threads); or max
    #[arg(long, value_name = "N", value_parser = pids)]
    pids: Option<Limit>,

    /// Share of block device time beside others, 10 to 1000 (OCI's scale) [kernel's default: 100]
    #[arg(long, value_name = "N", value_parser = |text: &str| number("blockIO.weight", text))]
    io_weight: Option<u64>,

    /// Write a cgroup v2 file, such as memory.high=1073741824; wins over the others; repeat for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    unified: Vec<(String, String)>,
}

/// The period of `--cpus`, in microseconds.
const PERIOD_US: u64 = 100_000;

fn put_quota(cpu: &mut Cpu, cpus: Option<Limit>) {
    if let Some(quota) = cpus {
        cpu.quota = Some(quota);
        cpu.period = if quota == Limit::Max { cpu.period } else { Some(PERIOD_US) };
    }
}

fn cpus(text: &str) -> Result<Limit> {
    parse_cpus(text).map_err(|error| error.with_setting("cpu.quota"))
}

fn pids(text: &str) -> Result<Limit> {
    match text {
        "max" => Ok(Limit::Max),
        number => number
            .parse()
            .map(Limit::Value)
            .map_err(|_| Error::invalid("pids.limit", text, "takes a number of tasks, or `max`")),
    }
}

fn number(setting: &'static str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::invalid(setting, text, "takes a whole number"))
}

/// A list; nothing and `max` lift the set.
fn set(setting: &'static str, text: &str) -> Result<CpuSet> {
    let list = if text == "max" { "" } else { text };
    list.parse().map_err(|error: Error| error.with_setting(setting))
}

fn key_value(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or_else(|| {
        Error::invalid(
            "unified",
            text,
            "takes KEY=VALUE, the name of a cgroup v2 file and what to write to it",
        )
    })?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Limits {
    /// The resources of the document, and the report of its fields that nobody reads; without the options.
    pub fn document(&self) -> Result<(Resources, Report)> {
        match &self.resources {
            Some(file) => Resources::from_oci_json(&read(file)?).map_err(|error| in_file(error, file)),
            None => Ok(Default::default()),
        }
    }

    /// Puts the options over what is there, whatever it is called there.
    pub fn apply(&self, resources: &mut Resources) {
        let mut given = Resources::default();
        self.put(&mut given);
        resources.drop_unified(&given);
        self.put(resources);
    }

    /// Those of each thread by itself.
    pub fn each(&self) -> EachThread {
        let mut each = EachThread::default();
        put_quota(&mut each.vcpu.cpu, self.cpus_per_vcpu);
        put_quota(&mut each.iothread.cpu, self.cpus_per_iothread);
        each
    }

    /// Those of the overhead by itself.
    pub fn overhead(&self) -> Resources {
        let mut overhead = Resources::default();
        put_quota(&mut overhead.cpu, self.overhead_cpus);
        overhead.memory.limit = self.overhead_memory;
        overhead
    }

    fn put(&self, resources: &mut Resources) {
        let Resources { memory, cpu, pids, block_io, unified, .. } = resources;
        memory.limit = self.memory.or(memory.limit);
        memory.reservation = self.memory_reservation.or(memory.reservation);
        memory.swap = self.memory_swap.or(memory.swap);
        put_quota(cpu, self.cpus);
        if self.cpu_shares.or(self.cpu_weight).is_some() {
            cpu.shares = self.cpu_shares;
            cpu.weight = self.cpu_weight;
        }
        cpu.burst = self.cpu_burst.or(cpu.burst);
        cpu.cpus = self.cpuset_cpus.clone().or(cpu.cpus.take());
        cpu.mems = self.cpuset_mems.clone().or(cpu.mems.take());
        pids.limit = self.pids.or(pids.limit);
        block_io.weight = self.io_weight.or(block_io.weight);
        unified.extend(self.unified.iter().cloned().collect::<BTreeMap<_, _>>());
    }
}

impl Wanted {
    /// The library's words for all this. `node` finds the numbers of a device's path.
    pub fn config(
        &self,
        context: &Context,
        id: &SandboxId,
        by_systemd: bool,
        node: impl Fn(&Path) -> Result<DeviceNode>,
    ) -> Result<SandboxConfig> {
        let (mut resources, unread, document_path) = match &self.spec {
            Some(file) => {
                let (spec, unread) =
                    SpecFile::from_oci_json(&read(file)?).map_err(|error| in_file(error, file))?;
                (spec.resources, unread, spec.cgroups_path)
            }
            None => {
                let (resources, unread) = self.limits.document()?;
                (resources, unread, None)
            }
        };
        self.limits.apply(&mut resources);
        resources.devices.extend(self.devices.rules(node)?);
        let path = match (&self.creation.path, document_path.as_deref()) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path.parse()?,
            (None, None) if by_systemd && !self.creation.is_for_paths(context.global.driver) => {
                CgroupPath::default_unit(id.as_str())?
            }
            (None, None) => id.as_str().parse()?,
        };
        self.creation.fits(context.global.driver, &path)?;
        if let Some(Overhead::Separate(path)) = &self.creation.overhead {
            fits_driver(context.global.driver, path).map_err(|error| error.with_setting("overhead"))?;
        }
        let mut config = SandboxConfig::new(path)
            .resources(resources)
            .unread(unread)
            .profile(self.creation.profile.unwrap_or_default())
            .overhead_resources(self.limits.overhead())
            .each_thread(self.limits.each())
            .vcpu_hints(self.creation.vcpus.hints())
            .evacuate(self.creation.evacuate)
            .allow_nested(self.creation.allow_nested)
            .unsupported(context.unsupported());
        if let Some(overhead) = &self.creation.overhead {
            config = config.overhead(overhead.clone());
        }
        if let Some(pin) = self.creation.pin {
            config = config.pin(pin);
        }
        if let Some(parent) = &self.creation.parent {
            config = config.parent(parent.clone());
        }
        if let Some((uid, gid)) = self.creation.owner {
            config = config.owner(uid, gid);
        }
        if let Some(prefix) = &self.creation.name_prefix {
            config = config.name_prefix(prefix);
        }
        Ok(config)
    }
}

/// `--device-allow` and `--device-deny`, in the order in which they stand: later rules win.
#[derive(Debug, Default)]
pub struct DeviceOptions(Vec<(bool, String)>);

const DEVICE_OPTIONS: [(bool, &str, &str, &str); 2] = [
    (
        true,
        "device_allow",
        "device-allow",
        "Allow a device: /dev/PATH[:rwm], or \"c|b|a MAJOR:MINOR [rwm]\" with *; repeat, later rules win",
    ),
    (false, "device_deny", "device-deny", "Deny a device: as for --device-allow, and in order with it"),
];

impl DeviceOptions {
    pub fn rules(&self, node: impl Fn(&Path) -> Result<DeviceNode>) -> Result<Vec<DeviceRule>> {
        self.0.iter().map(|(allow, text)| DeviceRule::parse(*allow, text, &node)).collect()
    }
}

/// By hand, because the derived form keeps no order between two options.
impl Args for DeviceOptions {
    fn augment_args(command: Command) -> Command {
        command.args(DEVICE_OPTIONS.map(|(_, id, long, help)| {
            let option = clap::Arg::new(id).long(long).value_name("RULE").action(ArgAction::Append);
            option.help(help).help_heading("Devices")
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DeviceOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let mut placed = Vec::new();
        for (allow, id, ..) in DEVICE_OPTIONS {
            let (places, texts) = (matches.indices_of(id), matches.get_many::<String>(id));
            let pairs = places.into_iter().flatten().zip(texts.into_iter().flatten());
            placed.extend(pairs.map(|(place, text)| (place, (allow, text.clone()))));
        }
        placed.sort();
        self.0 = placed.into_iter().map(|(_, rule)| rule).collect();
        Ok(())
    }
}

/// The numbers of a device on a host that is not this machine: those that it is known to have, and those that are the
/// same on every Linux (kernel documentation: admin-guide/devices).
pub fn node_of(host: &ringfence::Host) -> impl Fn(&Path) -> Result<DeviceNode> {
    const EVERYWHERE: [(&str, u32, u32); 7] = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
        ("/dev/ptmx", 5, 2),
    ];
    |path| {
        let known = host.devices.get(path).copied();
        let everywhere = || {
            let (_, major, minor) = EVERYWHERE.into_iter().find(|(known, ..)| Path::new(known) == path)?;
            Some(DeviceNode { kind: DeviceKind::Char, major, minor })
        };
        known.or_else(everywhere).ok_or_else(|| {
            let why = "nobody knows the numbers of this device on that host: give them, as in \"c 1:3 rwm\"";
            Error::invalid("devices", path.display(), why)
        })
    }
}

/// The numbers of a device on this machine: those that are known already, else what the path is now.
pub fn node_on(host: &ringfence::Host) -> impl Fn(&Path) -> Result<DeviceNode> {
    |path| host.devices.get(path).map_or_else(|| DeviceNode::at(path), |node| Ok(*node))
}

/// The text of a file, or of standard input for `-`.
pub fn read(file: &Path) -> Result<String> {
    let read = if file.to_str() == Some("-") {
        read_document(std::io::stdin().lock())
    } else {
        let opened = std::fs::File::open(file).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("cannot read the file: {error}")).with_source(error)
        });
        opened.and_then(read_document)
    };
    read.map_err(|error| error.with_path(file))
}

/// Names the file of a document that is refused.
pub fn in_file(error: Error, file: &Path) -> Error {
    if error.path().is_some() { error } else { error.with_path(file) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        wanted: Wanted,
    }

    fn parse(options: &[&str]) -> Result<Wanted, clap::Error> {
        Line::try_parse_from([&["line"], options].concat()).map(|line| line.wanted)
    }

    fn resources(options: &[&str]) -> Resources {
        let mut resources = Resources::default();
        parse(options).unwrap().limits.apply(&mut resources);
        resources
    }

    #[test]
    fn each_option_sets_what_it_is_named_after() {
        let cases: [(&[&str], Resources); 14] = [
            (&[], Resources::new()),
            (&["--memory", "64M"], Resources::new().memory_limit(Limit::Value(64 << 20))),
            (&["--memory-reservation", "4096"], Resources::new().memory_reservation(Limit::Value(4096))),
            (&["--memory-swap", "max"], Resources::new().memory_swap(Limit::Max)),
            (&["--cpus", "0.5"], Resources::new().cpu_quota(Limit::Value(50_000)).cpu_period(100_000)),
            (&["--cpus", "max"], Resources::new().cpu_quota(Limit::Max)),
            (&["--cpu-shares", "512"], Resources::new().cpu_shares(512)),
            (&["--cpu-weight", "50"], Resources::new().cpu_weight(50)),
            (&["--cpuset-cpus", "max"], Resources::new().cpuset_cpus(CpuSet::new())),
            (&["--cpuset-mems", ""], Resources::new().cpuset_mems(CpuSet::new())),
            (&["--cpuset-cpus", "0-1"], Resources::new().cpuset_cpus("0-1".parse().unwrap())),
            (&["--pids", "max"], Resources::new().pids_limit(Limit::Max)),
            (&["--io-weight", "500"], Resources::new().io_weight(500)),
            (&["--unified", "memory.high=1"], Resources::new().unified("memory.high", "1")),
        ];
        for (options, expected) in cases {
            assert_eq!(resources(options), expected, "{options:?}");
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_the_library_s_words() {
        for (option, value, setting) in [
            ("--memory", "64Q", "memory.limit"),
            ("--memory-swap", "", "memory.swap"),
            ("--cpus", "fast", "cpu.quota"),
            ("--pids", "1.5", "pids.limit"),
            ("--io-weight", "x", "blockIO.weight"),
            ("--unified", "=1", "unified"),
            ("--overhead", "nowhere", "overhead"),
        ] {
            let error = parse(&[option, value]).unwrap_err();
            let source = std::error::Error::source(&error).unwrap();
            let known = source.downcast_ref::<Error>().unwrap();
            assert_eq!((known.setting(), known.value()), (Some(setting), Some(value)));
        }
    }

    #[test]
    fn options_win_over_the_document_and_leave_its_other_fields() {
        let mut given =
            Resources::new().memory_limit(Limit::Value(1)).cpu_shares(2).pids_limit(Limit::Value(3));
        parse(&["--memory", "8K", "--cpu-weight", "7"]).unwrap().limits.apply(&mut given);
        let expected =
            Resources::new().memory_limit(Limit::Value(8192)).cpu_weight(7).pids_limit(Limit::Value(3));
        assert_eq!(given, expected);
        let mut given =
            Resources::new().unified("memory.max", "1").unified("pids.max", "2").unified("cpu.max", "1000");
        parse(&["--memory", "8K", "--cpus", "1"]).unwrap().limits.apply(&mut given);
        let expected = Resources::new().memory_limit(Limit::Value(8192)).cpu_quota(Limit::Value(100_000));
        assert_eq!(given, expected.cpu_period(100_000).unified("pids.max", "2"));
    }

    #[test]
    fn device_options_keep_their_order_across_allow_and_deny() {
        let options = ["--device-deny", "a *:*", "--device-allow=c 1:3 rwm", "--device-deny", "c 1:3 m"];
        let wanted = parse(&options).unwrap();
        let texts: Vec<_> = wanted.devices.0.iter().map(|(allow, text)| (*allow, text.as_str())).collect();
        assert_eq!(texts, [(false, "a *:*"), (true, "c 1:3 rwm"), (false, "c 1:3 m")]);
    }

    #[test]
    fn two_documents_or_two_scales_of_one_share_exclude_each_other() {
        assert!(parse(&["--spec", "a", "--resources", "b"]).is_err());
        assert!(parse(&["--cpu-shares", "2", "--cpu-weight", "2"]).is_err());
    }
}
