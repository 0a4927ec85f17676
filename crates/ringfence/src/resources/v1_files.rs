//! From the interface files of cgroup v1.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{HugePageSize, Limit, Resources};
use crate::devices::{DeviceNumber, DeviceRule};
use crate::document::check_length;
use crate::interface;
use crate::{Error, ErrorKind, Report, Result};

impl Resources {
    /// Reads limits from what v1's interface files hold: a JSON object of files and their contents, or lines of
    /// `FILE VALUE`, with a blank, `=` or `:` between them and a directory before them or not. So
    /// `grep -s . /sys/fs/cgroup/*/vm1/*` makes a text for it.
    ///
    /// The report has a note for each file that is no limit. What `devices.list` shows becomes device rules behind one that
    /// denies everything.
    ///
    /// # Errors
    /// A value that the file cannot hold: the error names the file. Lines of several cgroups, and two different values for
    /// one file: the error names both.
    pub fn from_v1_files(text: &str) -> Result<(Self, Report)> {
        check_length(text)?;
        let (mut resources, mut others) = (Self::default(), BTreeSet::new());
        let (mut cgroups, mut values) = (Cgroups::default(), Values::default());
        for Line { directory, file, value } in lines(text)? {
            let value = value.trim();
            if value.is_empty() {
                continue;
            }
            let named = |error: Error| error.with_setting(file.clone()).with_value(value);
            if resources.take_v1(&file, value).map_err(named)? {
                cgroups.check(directory.as_deref(), &file)?;
                values.check(&file, value)?;
            } else {
                others.insert(file);
            }
        }
        let mut report = Report::default();
        for file in others {
            report.note(file, "", "not a limit of cgroup v1");
        }
        Ok((resources, report))
    }

    /// Takes one line of a file; whether it is a file with limits. What is as in every new cgroup, and is nothing that v2
    /// has, asks for nothing.
    fn take_v1(&mut self, file: &str, value: &str) -> Result<bool> {
        let refused = |allowed: &'static str| Error::new(ErrorKind::InvalidInput, allowed);
        let limit = || interface::size(value, 1).ok_or_else(|| refused("takes a number, or -1 for no limit"));
        let number = || value.parse::<u64>().map_err(|_| refused("takes a whole number"));
        let is_on = || match number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(refused("takes 0 or 1")),
        };
        let mut words = value.split_ascii_whitespace();
        let (first, second) = (words.next(), words.next());
        let device = || first.and_then(DeviceNumber::parse).zip(second?.parse::<u64>().ok());
        let by_device = || device().ok_or_else(|| refused("takes MAJOR:MINOR and a number"));
        let Self { memory, cpu, pids, block_io, network, .. } = self;
        match file {
            "memory.limit_in_bytes" => memory.limit = Some(limit()?),
            "memory.memsw.limit_in_bytes" => memory.swap = Some(limit()?),
            "memory.soft_limit_in_bytes" => {
                // No limit to what is reclaimed first, which is no protection from reclaim.
                memory.reservation = Some(limit()?).filter(|limit| *limit != Limit::Max);
            }
            "memory.kmem.limit_in_bytes" => {
                memory.kernel = Some(limit()?).filter(|limit| *limit != Limit::Max)
            }
            "memory.kmem.tcp.limit_in_bytes" => {
                memory.kernel_tcp = Some(limit()?).filter(|limit| *limit != Limit::Max);
            }
            "memory.swappiness" => memory.swappiness = Some(number()?),
            "memory.oom_control" => match (first, second) {
                (Some("oom_kill_disable"), Some(disable)) => memory.disable_oom_killer = Some(disable == "1"),
                (_, Some(_)) => {}
                _ => memory.disable_oom_killer = Some(is_on()?),
            },
            "memory.use_hierarchy" => memory.use_hierarchy = Some(is_on()?).filter(|on| !on),
            "cpu.shares" => cpu.shares = Some(number()?),
            "cpu.cfs_quota_us" => cpu.quota = Some(limit()?),
            "cpu.cfs_period_us" => cpu.period = Some(number()?),
            "cpu.cfs_burst_us" => cpu.burst = Some(number()?),
            "cpu.idle" => cpu.idle = Some(i64::from(is_on()?)),
            "cpu.rt_period_us" => cpu.realtime_period = Some(number()?).filter(|period| *period != 1_000_000),
            "cpu.rt_runtime_us" => {
                let runtime = value.parse().map_err(|_| refused("takes a whole number"))?;
                cpu.realtime_runtime = Some(runtime).filter(|runtime| *runtime != 0);
            }
            "cpuset.cpus" => cpu.cpus = Some(value.parse()?),
            "cpuset.mems" => cpu.mems = Some(value.parse()?),
            "pids.max" => pids.limit = Some(limit()?),
            // Linux 4.12 to 4.20 have CFQ's blkio.weight beside it: the default asks for nothing, and lifts nothing.
            "blkio.bfq.weight" => match number()? {
                BFQ_DEFAULT => {}
                weight => block_io.weight = Some(weight),
            },
            "blkio.weight" => block_io.weight = Some(number()?),
            "blkio.leaf_weight" => block_io.leaf_weight = Some(number()?),
            // The weight of all others stands in the first line of this file.
            "blkio.bfq.weight_device" if first == Some("default") => {}
            "blkio.weight_device" | "blkio.bfq.weight_device" => {
                let (device, weight) = by_device()?;
                block_io.weight_device.entry(device).or_default().weight = Some(weight);
            }
            "blkio.leaf_weight_device" => {
                let (device, weight) = by_device()?;
                block_io.weight_device.entry(device).or_default().leaf_weight = Some(weight);
            }
            "net_cls.classid" => network.class_id = Some(v1_class(value)?).filter(|class| *class != 0),
            "net_prio.ifpriomap" => {
                let priority = second.and_then(|priority| priority.parse().ok());
                let (interface, priority) =
                    first.zip(priority).ok_or_else(|| refused("takes an interface and a number"))?;
                if priority != 0 {
                    network.priorities.insert(interface.to_owned(), priority);
                }
            }
            // The file and its words are the same in both versions.
            "rdma.max" | "misc.max" => {
                let own = self.unified.entry(file.to_owned()).or_default();
                *own = interface::merged(file, own, value);
            }
            "devices.list" => {
                if self.devices.is_empty() {
                    self.devices.push(DeviceRule::deny_all());
                }
                let no_path = |_: &std::path::Path| Err(refused("takes a type, numbers and an access"));
                self.devices.push(DeviceRule::parse(true, value, no_path)?);
            }
            _ => return self.take_v1_family(file, limit, by_device),
        }
        Ok(true)
    }

    /// Files of which there are several: throttles, and those with the size of a page in their name.
    fn take_v1_family(
        &mut self,
        file: &str,
        limit: impl Fn() -> Result<Limit>,
        by_device: impl Fn() -> Result<(DeviceNumber, u64)>,
    ) -> Result<bool> {
        let io = &mut self.block_io;
        let throttle = match file {
            "blkio.throttle.read_bps_device" => Some(&mut io.throttle_read_bps_device),
            "blkio.throttle.write_bps_device" => Some(&mut io.throttle_write_bps_device),
            "blkio.throttle.read_iops_device" => Some(&mut io.throttle_read_iops_device),
            "blkio.throttle.write_iops_device" => Some(&mut io.throttle_write_iops_device),
            _ => None,
        };
        if let Some(rates) = throttle {
            let (device, rate) = by_device()?;
            rates.insert(device, if rate == 0 { Limit::Max } else { Limit::Value(rate) });
            return Ok(true);
        }
        let Some((size, kind)) = file.strip_prefix("hugetlb.").and_then(|rest| rest.split_once('.')) else {
            return Ok(false);
        };
        match (HugePageSize::parse(size), kind) {
            (Some(size), "limit_in_bytes") => {
                self.hugepage_limits.insert(size, limit()?);
            }
            // OCI has no field for it.
            (Some(size), "rsvd.limit_in_bytes") => {
                self.unified.insert(format!("hugetlb.{size}.rsvd.max"), limit()?.to_string());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The weight of every new cgroup in `blkio.bfq.weight`.
const BFQ_DEFAULT: u64 = 100;

/// The cgroup that all lines are of.
#[derive(Default)]
struct Cgroups {
    /// The directory and the path of the cgroup in it, where a hierarchy is named in the directory.
    known: Option<(String, String)>,
    /// The directory of each file.
    of_files: BTreeMap<String, String>,
}

impl Cgroups {
    /// Refuses a file of another cgroup than those before it.
    fn check(&mut self, directory: Option<&str>, file: &str) -> Result<()> {
        let Some(directory) = directory else { return Ok(()) };
        let refused = |other: &str| {
            let why = format!("is of another cgroup than {other}: takes the files of one cgroup at a time");
            Err(Error::invalid(file.to_owned(), directory, why))
        };
        // One hierarchy has one directory of a cgroup.
        match self.of_files.get(file) {
            Some(other) if other != directory => return refused(other),
            Some(_) => {}
            None => _ = self.of_files.insert(file.to_owned(), directory.to_owned()),
        }
        let Some(cgroup) = below_hierarchy(directory, file) else { return Ok(()) };
        match &self.known {
            Some((other, known)) if *known != cgroup => return refused(other),
            Some(_) => {}
            None => self.known = Some((directory.to_owned(), cgroup)),
        }
        Ok(())
    }
}

/// The path of the cgroup, in a directory whose hierarchy is recognized by the controller of the file: `vm1` in
/// `/sys/fs/cgroup/cpu,cpuacct/vm1` for `cpu.shares`.
fn below_hierarchy(directory: &str, file: &str) -> Option<String> {
    let (controller, _) = file.split_once('.')?;
    let mut components = directory.split('/').filter(|component| !component.is_empty());
    components.find(|component| component.split(',').any(|name| name == controller))?;
    Some(components.collect::<Vec<_>>().join("/"))
}

/// The values that were read: by file, and by device, interface or name in it.
#[derive(Default)]
struct Values(BTreeMap<(String, String), (String, String)>);

impl Values {
    /// Refuses a value that differs from an earlier one for the same.
    fn check(&mut self, file: &str, value: &str) -> Result<()> {
        // Both are the weight of a cgroup.
        let subject = match file {
            "blkio.bfq.weight" if value.parse() == Ok(BFQ_DEFAULT) => return Ok(()),
            "blkio.bfq.weight" => "blkio.weight",
            "blkio.bfq.weight_device" => "blkio.weight_device",
            // Each line is a rule.
            "devices.list" => return Ok(()),
            file => file,
        };
        let entries: Vec<(String, String)> = match value.split_once([' ', '\t']) {
            _ if interface::is_keyed(file) => {
                let lines = interface::Lines::parse(value);
                lines.iter().map(|(key, name, value)| (format!("{key} {name}"), value.to_owned())).collect()
            }
            Some((name, value)) if file == "memory.oom_control" => vec![(name.to_owned(), value.to_owned())],
            _ => vec![(String::new(), value.to_owned())],
        };
        for (name, value) in entries {
            match self.0.get(&(subject.to_owned(), name.clone())) {
                Some((other_file, other)) if !interface::holds(subject, other, &value, 1) => {
                    let about =
                        if name.is_empty() { String::new() } else { format!(" for {}", name.trim_end()) };
                    let why =
                        format!("differs from {other_file} = {other}{about}: takes one value of each file");
                    return Err(Error::invalid(file.to_owned(), value, why));
                }
                Some(_) => {}
                None => _ = self.0.insert((subject.to_owned(), name), (file.to_owned(), value)),
            }
        }
        Ok(())
    }
}

/// One line of one file.
struct Line {
    directory: Option<String>,
    file: String,
    value: String,
}

impl Line {
    /// `file` may have a directory before it.
    fn new(file: &str, value: &str) -> Self {
        let (directory, file) = file.rsplit_once('/').map_or((None, file), |(path, file)| (Some(path), file));
        let directory = directory.map(|directory| directory.trim().to_owned());
        Self { directory, file: file.trim().to_owned(), value: value.to_owned() }
    }
}

/// Decimal, or hexadecimal with 0x as people write classes.
fn v1_class(text: &str) -> Result<u32> {
    let class = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    class.map_err(|_| Error::new(ErrorKind::InvalidInput, "takes a number of 32 bits"))
}

/// The lines of all files.
fn lines(text: &str) -> Result<Vec<Line>> {
    if !text.trim_start().starts_with('{') {
        return text.lines().filter(|line| !line.trim().is_empty()).map(line).collect();
    }
    let Files(files) = serde_json::from_str(text)
        .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("not an object of files: {error}")))?;
    let lines = files.iter().flat_map(|(file, content)| {
        let content = match content {
            Content::Text(text) => text.clone(),
            Content::Number(number) => number.to_string(),
        };
        content.lines().map(|line| Line::new(file, line)).collect::<Vec<_>>()
    });
    Ok(lines.collect())
}

/// A JSON object as it is written: a map would keep the last of two values for one file.
struct Files(Vec<(String, Content)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Number(i64),
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Files;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of files and their contents")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let mut files = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    files.push(entry);
                }
                Ok(Files(files))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// `FILE VALUE`, `FILE=VALUE`, `DIRECTORY/FILE:VALUE`.
fn line(line: &str) -> Result<Line> {
    // No value of v1 has a slash in it.
    let start = line.rfind('/').map_or(0, |slash| slash.saturating_add(1));
    let (directory, rest) = line.split_at_checked(start).unwrap_or(("", line));
    let (file, value) = rest.trim().split_once(['=', ':', ' ', '\t']).ok_or_else(|| {
        let allowed = "takes a file and its value in each line, such as cpu.shares=512";
        Error::new(ErrorKind::InvalidInput, allowed).with_value(line)
    })?;
    let value = value.trim_start_matches(['=', ' ', '\t']);
    Ok(Line::new(&format!("{directory}{file}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Network;

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 0 };

    fn read(text: &str) -> Resources {
        let (resources, report) =
            Resources::from_v1_files(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(report.is_empty(), "{text}: {report}");
        resources
    }

    #[test]
    fn every_file_with_limits_is_read() {
        let new = Resources::new;
        let cases = [
            ("memory.limit_in_bytes 67108864", new().memory_limit(64 << 20)),
            ("memory.limit_in_bytes 9223372036854771712", new().memory_limit(Limit::Max)),
            ("memory.memsw.limit_in_bytes -1", new().memory_swap(Limit::Max)),
            ("memory.soft_limit_in_bytes 4096", new().memory_reservation(4096)),
            ("memory.soft_limit_in_bytes 9223372036854771712", new()),
            ("blkio.bfq.weight 100\ncpuset.cpus=", new()),
            ("memory.kmem.limit_in_bytes 4096", new().memory_kernel(4096)),
            ("memory.kmem.limit_in_bytes 9223372036854771712", new()),
            ("memory.kmem.tcp.limit_in_bytes 4096", new().memory_kernel_tcp(4096)),
            ("memory.swappiness 60", new().memory_swappiness(60)),
            ("memory.oom_control 1", new().disable_oom_killer(true)),
            (
                "memory.oom_control oom_kill_disable 0\nmemory.oom_control under_oom 0",
                new().disable_oom_killer(false),
            ),
            ("memory.use_hierarchy 0", new().memory_use_hierarchy(false)),
            ("memory.use_hierarchy 1", new()),
            ("cpu.shares 512", new().cpu_shares(512)),
            ("cpu.cfs_quota_us -1", new().cpu_quota(Limit::Max)),
            ("cpu.cfs_quota_us 5000\ncpu.cfs_period_us 10000", new().cpu_quota(5000).cpu_period(10_000)),
            ("cpu.cfs_burst_us 0", new().cpu_burst(0)),
            ("cpu.idle 1", new().cpu_idle(true)),
            (
                "cpu.rt_period_us 500000\ncpu.rt_runtime_us 5",
                new().cpu_realtime_period(500_000).cpu_realtime_runtime(5),
            ),
            ("cpu.rt_period_us 1000000\ncpu.rt_runtime_us 0", new()),
            ("cpuset.cpus 0-1,3", new().cpuset_cpus("0-1,3".parse().unwrap())),
            ("cpuset.mems 0", new().cpuset_mems("0".parse().unwrap())),
            ("pids.max max", new().pids_limit(Limit::Max)),
            ("blkio.bfq.weight 500", new().io_weight(500)),
            (
                "blkio.bfq.weight_device default 100\nblkio.bfq.weight_device 8:0 50",
                new().io_device_weight(DISK, 50),
            ),
            (
                "blkio.leaf_weight 20\nblkio.leaf_weight_device 8:0 30",
                new().io_leaf_weight(20).io_device_leaf_weight(DISK, 30),
            ),
            ("blkio.throttle.read_bps_device 8:0 4096", new().io_read_bps(DISK, 4096)),
            ("blkio.throttle.write_bps_device 8:0 0", new().io_write_bps(DISK, Limit::Max)),
            ("blkio.throttle.read_iops_device 8:0 5", new().io_read_iops(DISK, 5)),
            ("blkio.throttle.write_iops_device 8:0 6", new().io_write_iops(DISK, 6)),
            ("hugetlb.2MB.limit_in_bytes 0", new().hugepage_limit("2MB".parse().unwrap(), 0)),
            (
                "hugetlb.1GB.limit_in_bytes 9223372035781033984",
                new().hugepage_limit("1GB".parse().unwrap(), Limit::Max),
            ),
            ("hugetlb.2MB.rsvd.limit_in_bytes 4194304", new().unified("hugetlb.2MB.rsvd.max", "4194304")),
            ("net_cls.classid 0x100001", new().network_class_id(0x10_0001)),
            ("net_cls.classid 0\nnet_prio.ifpriomap lo 0", new()),
            ("net_prio.ifpriomap eth0 5", new().network_priority("eth0", 5)),
            (
                "rdma.max a hca_handle=3 hca_object=max\nrdma.max b hca_handle=1",
                new().unified("rdma.max", "a hca_handle=3 hca_object=max\nb hca_handle=1"),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), expected, "{text}");
        }
        let rules = read("devices.list c 1:3 rwm\ndevices.list b *:* m").devices;
        let rules: Vec<_> = rules.iter().map(|rule| (rule.allow, rule.to_string())).collect();
        let expected = [(false, "a *:* rwm"), (true, "c 1:3 rwm"), (true, "b *:* m")];
        assert_eq!(rules, expected.map(|(allow, rule)| (allow, rule.to_owned())));
    }

    #[test]
    fn lines_may_have_a_directory_before_them_and_the_whole_may_be_json() {
        let expected = Resources::new()
            .cpu_shares(512)
            .io_read_bps(DISK, 5)
            .io_read_bps(DeviceNumber { major: 8, minor: 16 }, 6);
        for text in [
            "cpu.shares=512\n\n  blkio.throttle.read_bps_device = 8:0 5\nblkio.throttle.read_bps_device 8:16 6",
            "/sys/fs/cgroup/cpu/cri:a=b/cpu.shares:512\n/x/blkio.throttle.read_bps_device:8:0 5\n/x/blkio.throttle.read_bps_device:8:16 6",
            r#"{"cpu.shares": 512, "blkio.throttle.read_bps_device": "8:0 5\n8:16 6\n", "cpuset.cpus": ""}"#,
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        let (resources, report) = Resources::from_v1_files(
            "memory.stat cache 0\nmemory.stat rss 0\ntasks 17\nhugetlb.x.limit_in_bytes 0",
        )
        .unwrap();
        assert_eq!(resources, Resources { network: Network::default(), ..Resources::new() });
        assert_eq!(
            report.lines().iter().map(|line| line.setting.as_ref()).collect::<Vec<_>>(),
            ["hugetlb.x.limit_in_bytes", "memory.stat", "tasks"]
        );
        assert_eq!(report.unsupported().count(), 0);
    }

    #[test]
    fn lines_of_several_cgroups_are_refused() {
        const ROOT: &str = "/sys/fs/cgroup";
        for (lines, others) in [
            (["/cpu/a/cpu.shares:512", "/cpu/b/cpu.shares:512"], ["/cpu/a", "/cpu/b"]),
            (
                ["/cpu,cpuacct/a/cpu.shares:512", "/memory/b/memory.limit_in_bytes:4096"],
                ["/cpu,cpuacct/a", "/memory/b"],
            ),
            (["/cpu/a/cpu.shares:512", "/cpu/a/vcpu/cpu.shares:256"], ["/cpu/a", "/cpu/a/vcpu"]),
            (["/cpu/a/cpu.shares:512", "/memory/a/b/memory.limit_in_bytes:1"], ["/cpu/a", "/memory/a/b"]),
            (["/x/pids.max:5", "/y/pids.max:5"], ["/x", "/y"]),
        ] {
            let lines = lines.map(|line| format!("{ROOT}{line}"));
            let [first, second] = lines.each_ref().map(|line| line.split_once(':').unwrap());
            let json = format!(r#"{{"{}": "{}", "{}": "{}"}}"#, first.0, first.1, second.0, second.1);
            for text in [lines.join("\n"), json] {
                let error = Resources::from_v1_files(&text).expect_err(&text).to_string();
                for other in others {
                    assert!(error.contains(&format!("{ROOT}{other}")), "{text}: {error}");
                }
            }
        }
        let one = "/sys/fs/cgroup/cpu,cpuacct/memory/vm1/cpu.shares:512
            /sys/fs/cgroup/cpu,cpuacct/memory/vm1/cpuacct.usage:9
            /sys/fs/cgroup/memory/memory/vm1/memory.limit_in_bytes:4096
            /sys/fs/cgroup/memory/memory/vm1/tasks:4096
            pids.max 5";
        let (resources, _) = Resources::from_v1_files(one).unwrap();
        assert_eq!(resources, Resources::new().cpu_shares(512).memory_limit(4096).pids_limit(5));
    }

    #[test]
    fn two_values_for_one_file_are_refused() {
        for (first, second, values) in [
            ("cpu.shares 512", "cpu.shares 256", ["512", "256"]),
            ("blkio.weight 500", "blkio.weight 400", ["500", "400"]),
            ("blkio.weight 500", "blkio.bfq.weight 400", ["500", "400"]),
            ("blkio.weight_device 8:0 500", "blkio.bfq.weight_device 8:0 400", ["500", "400"]),
            ("memory.limit_in_bytes 4096", "memory.limit_in_bytes -1", ["4096", "-1"]),
            ("memory.oom_control oom_kill_disable 0", "memory.oom_control oom_kill_disable 1", ["0", "1"]),
            ("blkio.throttle.read_bps_device 8:0 5", "blkio.throttle.read_bps_device 8:0 6", ["5", "6"]),
            ("net_prio.ifpriomap lo 5", "net_prio.ifpriomap lo 6", ["5", "6"]),
            ("rdma.max a hca_handle=3", "rdma.max a hca_handle=4", ["3", "4"]),
            ("cpuset.cpus 0-1", "cpuset.cpus 0-2", ["0-1", "0-2"]),
            ("devices.list c 1:3 rwm\ncpu.idle 0", "cpu.idle 1", ["0", "1"]),
        ] {
            for text in [format!("{first}\n{second}"), format!("{second}\n{first}")] {
                let error = Resources::from_v1_files(&text).expect_err(&text);
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                for value in values {
                    assert!(error.to_string().contains(value), "{text}: {error}");
                }
                assert!(
                    second.starts_with(error.setting().unwrap())
                        || first.starts_with(error.setting().unwrap())
                );
            }
        }
        let error = Resources::from_v1_files(r#"{"cpu.shares": 512, "cpu.shares": "256"}"#).unwrap_err();
        assert!(error.to_string().contains("512") && error.to_string().contains("256"), "{error}");
    }

    #[test]
    fn one_value_that_is_given_twice_is_read() {
        for (text, expected) in [
            ("cpu.shares 512\ncpu.shares 512", Resources::new().cpu_shares(512)),
            ("cpuset.cpus 0-1\ncpuset.cpus 0,1", Resources::new().cpuset_cpus("0-1".parse().unwrap())),
            ("blkio.weight 400\nblkio.bfq.weight 100", Resources::new().io_weight(400)),
            ("blkio.bfq.weight 100\nblkio.weight 400", Resources::new().io_weight(400)),
            (
                "rdma.max a hca_handle=3\nrdma.max a hca_object=4",
                Resources::new().unified("rdma.max", "a hca_handle=3 hca_object=4"),
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn a_value_that_no_file_holds_is_refused_by_the_name_of_its_file() {
        for (text, file, value) in [
            ("memory.limit_in_bytes x", "memory.limit_in_bytes", "x"),
            ("cpu.shares -5", "cpu.shares", "-5"),
            ("cpu.idle 2", "cpu.idle", "2"),
            ("cpuset.cpus 3-1", "cpuset.cpus", "3-1"),
            ("blkio.throttle.read_bps_device 8:0", "blkio.throttle.read_bps_device", "8:0"),
            ("blkio.throttle.read_bps_device", "", ""),
            ("net_cls.classid 4294967296", "net_cls.classid", "4294967296"),
            ("net_prio.ifpriomap lo", "net_prio.ifpriomap", "lo"),
            ("devices.list x 1:3 rwm", "devices.list", "x 1:3 rwm"),
            ("{\"devices.list\": \"/dev/null\"}", "devices.list", "/dev/null"),
            ("{\"cpu.shares\": []}", "", ""),
        ] {
            let error = Resources::from_v1_files(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
            assert!(file.is_empty() || error.setting() == Some(file), "{text}: {error}");
            assert!(value.is_empty() || error.value() == Some(value), "{text}: {error}");
        }
    }
}
