//! Interface files of cgroups: whose they are, and how what is written to them is merged and taken back.

use std::collections::BTreeMap;
use std::fmt;

use crate::host::Controller;
use crate::resources::{CpuSet, HugePageSize, Limit, page_floor, parse_size};

/// The v2 controller that a file belongs to, by the part of its name before the first dot.
pub(crate) fn controller_of(file: &str) -> Option<Controller> {
    Controller::from_v2(file.split('.').next()?)
}

/// Whether the file is a limit of cgroup v2 itself: every cgroup has it, whatever controllers are enabled.
pub(crate) fn is_core_limit(file: &str) -> bool {
    matches!(file, "cgroup.max.descendants" | "cgroup.max.depth")
}

/// Whether the value lifts a cpuset: the cgroup follows its parent then.
pub(crate) fn lifts_cpuset(file: &str, value: &str) -> bool {
    matches!(file, "cpuset.cpus" | "cpuset.mems") && matches!(value.trim(), "" | "max")
}

/// Whether the file has a line for each device, interface or resource. It takes one of them at a time.
pub(crate) fn is_keyed(file: &str) -> bool {
    matches!(
        file,
        "io.max"
            | "io.latency"
            | "io.weight"
            | "io.bfq.weight"
            | "rdma.max"
            | "misc.max"
            | "net_prio.ifpriomap"
    ) || is_v1_device_file(file)
}

/// `blkio.throttle.read_bps_device`, `blkio.bfq.weight_device`.
fn is_v1_device_file(file: &str) -> bool {
    file.starts_with("blkio.") && file.ends_with("_device")
}

/// What lifts a line of a keyed file, if the file shows it only while there is something to lift.
fn lift(file: &str) -> Option<&'static str> {
    match file {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max"),
        "io.latency" => Some("target=0"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        throttle if throttle.starts_with("blkio.throttle.") => Some("0"),
        weight if is_v1_device_file(weight) => Some("default"),
        _ => None,
    }
}

/// The writes that take `written` out of a file again which held `now`.
pub(crate) fn restoring(file: &str, written: &str, now: &str) -> Vec<String> {
    if is_keyed(file) {
        let now = Lines::parse(now);
        let back = |key: &String| match (now.line(key), lift(file)) {
            (Some(line), _) => Some(line),
            (None, lift) => lift.map(|lift| format!("{key} {lift}")),
        };
        return Lines::parse(written).0.keys().filter_map(back).collect();
    }
    vec![match file {
        // An empty write is no write at all; a newline clears a set.
        _ if now.is_empty() => "\n".to_owned(),
        // It reads as "root invalid (why)" where the kernel cannot make it so.
        "cpuset.cpus.partition" => now.split_once(" invalid").map_or(now, |(asked, _)| asked).to_owned(),
        // It reads as three lines and takes one number.
        "memory.oom_control" => u8::from(now.contains("oom_kill_disable 1")).to_string(),
        _ => now.to_owned(),
    }]
}

/// What a file has been told after `before` and then `written`.
pub(crate) fn merged(file: &str, before: &str, written: &str) -> String {
    if !is_keyed(file) {
        return written.to_owned();
    }
    let mut lines = Lines::parse(before);
    lines.extend(Lines::parse(written));
    lines.to_string()
}

/// What is left of a value when another one is written behind it: of a file with a line for each key, what the other one
/// does not speak of.
pub(crate) fn left_of(file: &str, written: &str, later: &str) -> Option<String> {
    let mut left = Lines::parse(written);
    let later = Lines::parse(later);
    later.iter().for_each(|(key, name, _)| left.remove(key, name));
    (is_keyed(file) && !left.is_empty()).then(|| left.to_string())
}

/// Whether a file that holds `now` holds what was written to it, as the kernel keeps values: sizes in whole pages, sets as
/// sets, of keyed files the lines that were written.
pub(crate) fn holds(file: &str, written: &str, now: &str, page_size: u64) -> bool {
    if is_keyed(file) {
        let now = Lines::parse(now);
        let lifted = |name: &str| {
            let lifted = lift(file).map(|lift| Lines::parse(&format!("- {lift}")))?;
            lifted.get("-", name).map(str::to_owned)
        };
        return Lines::parse(written).iter().all(|(key, name, value)| {
            let held = now.get(key, name).map(str::to_owned).or_else(|| lifted(name));
            held.is_some_and(|held| {
                size(&held, 1) == size(value, 1) && (size(value, 1).is_some() || held == value)
            })
        });
    }
    match file {
        "memory.oom_control" => now.contains(&format!("oom_kill_disable {written}")),
        "cpuset.cpus" | "cpuset.mems" | "cpuset.cpus.exclusive" | "cpus" | "mems" => {
            let set = |text: &str| text.parse::<CpuSet>().ok();
            set(written).is_some_and(|written| set(now) == Some(written))
        }
        _ => {
            let page_size = match file.split('.').collect::<Vec<_>>()[..] {
                ["memory", ..] => page_size,
                ["hugetlb", size, ..] => HugePageSize::parse(size).map_or(1, HugePageSize::bytes),
                // Per cent with two decimals.
                ["cpu", "uclamp", _] => return per_cent(written) == per_cent(now),
                _ => 1,
            };
            match (size(written, page_size), size(now, page_size)) {
                (Some(written), Some(now)) => written == now,
                _ => written.split_whitespace().eq(now.split_whitespace()),
            }
        }
    }
}

/// In hundredths; without a limit it is all of it.
fn per_cent(text: &str) -> Option<u64> {
    let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    if whole == "max" {
        return Some(10_000);
    }
    let hundredths: u64 = format!("{part:0<2}").get(..2)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(hundredths)
}

/// A number as the kernel keeps it, in whole pages.
pub(crate) fn size(text: &str, page_size: u64) -> Option<Limit> {
    match text.trim() {
        "max" | "-1" => Some(Limit::Max),
        text => match Limit::from_bytes(parse_size(text).ok()?) {
            Limit::Value(bytes) => Some(Limit::Value(page_floor(bytes, page_size))),
            Limit::Max => Some(Limit::Max),
        },
    }
}

/// The lines of a keyed file: by key, the values by name. A line with one value and no name for it (`8:0 100`) has it
/// under ""; a value that stands alone is that of the key `default`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lines(BTreeMap<String, BTreeMap<String, String>>);

impl Lines {
    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            let mut rest = words.peekable();
            if rest.peek().is_none() {
                lines.set("default", "", first);
            }
            for word in rest {
                let (name, value) = word.split_once('=').unwrap_or(("", word));
                lines.set(first, name, value);
            }
        }
        lines
    }

    pub(crate) fn set(&mut self, key: &str, name: &str, value: &str) {
        self.0.entry(key.to_owned()).or_default().insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn get(&self, key: &str, name: &str) -> Option<&str> {
        self.0.get(key)?.get(name).map(String::as_str)
    }

    /// Takes one value out, and the line if it was the last.
    pub(crate) fn remove(&mut self, key: &str, name: &str) {
        if let Some(values) = self.0.get_mut(key) {
            values.remove(name);
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The other's values over these, each by itself, as the kernel takes them.
    pub(crate) fn extend(&mut self, other: Self) {
        for (key, values) in other.0 {
            self.0.entry(key).or_default().extend(values);
        }
    }

    /// Every value with its key and name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.0.iter().flat_map(|(key, values)| {
            values.iter().map(move |(name, value)| (key.as_str(), name.as_str(), value.as_str()))
        })
    }

    /// The line of a key, as it is written.
    pub(crate) fn line(&self, key: &str) -> Option<String> {
        let values = self.0.get(key)?;
        Some(values.iter().fold(key.to_owned(), |line, (name, value)| {
            if name.is_empty() { format!("{line} {value}") } else { format!("{line} {name}={value}") }
        }))
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.keys().filter_map(|key| self.line(key)).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_belongs_to_the_controller_that_it_is_named_after() {
        for (file, controller) in [
            ("memory.max", Some(Controller::Memory)),
            ("hugetlb.2MB.rsvd.max", Some(Controller::Hugetlb)),
            ("io.bfq.weight", Some(Controller::Io)),
            ("blkio.weight", None),
            ("nosuch.max", None),
            ("", None),
        ] {
            assert_eq!(controller_of(file), controller, "{file}");
        }
    }

    #[test]
    fn what_was_written_to_a_file_with_a_line_for_each_key_is_taken_back_key_by_key() {
        let written = "8:0 rbps=1\n8:16 wbps=2";
        let lines = |file, written, now| restoring(file, written, now);
        const NONE: &str = "rbps=max wbps=max riops=max wiops=max";
        assert_eq!(lines("io.max", written, ""), [format!("8:0 {NONE}"), format!("8:16 {NONE}")]);
        assert_eq!(
            lines("io.max", written, "8:0 rbps=9 wbps=max\n8:32 rbps=7 wbps=max"),
            ["8:0 rbps=9 wbps=max".to_owned(), format!("8:16 {NONE}")]
        );
        assert_eq!(lines("io.weight", "8:0 5\n8:16 7", "default 100\n8:0 50"), ["8:0 50", "8:16 default"]);
        assert_eq!(lines("io.weight", "300", "default 100\n8:0 50"), ["default 100"]);
        assert_eq!(lines("io.latency", "8:0 target=5", ""), ["8:0 target=0"]);
        assert_eq!(lines("blkio.throttle.read_bps_device", "8:0 5", ""), ["8:0 0"]);
        assert_eq!(lines("blkio.bfq.weight_device", "8:0 5", "8:0 7\n8:16 9"), ["8:0 7"]);
        assert_eq!(lines("net_prio.ifpriomap", "lo 5", "lo 0\neth0 3"), ["lo 0"]);
        assert_eq!(
            lines("rdma.max", "mlx5_0 hca_handle=3", "mlx5_0 hca_handle=max hca_object=7"),
            ["mlx5_0 hca_handle=max hca_object=7"]
        );
    }

    #[test]
    fn what_was_written_to_a_file_with_one_value_is_taken_back_by_what_it_held() {
        for (file, now, back) in [
            ("cpuset.cpus", "", "\n"),
            ("cpuset.cpus.partition", "root invalid (no CPUs)", "root"),
            ("memory.oom_control", "oom_kill_disable 1\nunder_oom 0\noom_kill 3", "1"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0", "0"),
            ("cpu.max", "5000 100000", "5000 100000"),
            ("pids.max", "max", "max"),
        ] {
            assert_eq!(restoring(file, "1", now), [back], "{file}");
        }
    }

    #[test]
    fn what_is_written_later_wins_key_by_key() {
        let first = "8:0 rbps=1 wbps=2\n8:16 rbps=3";
        assert_eq!(left_of("io.max", first, "8:0 rbps=9").as_deref(), Some("8:0 wbps=2\n8:16 rbps=3"));
        assert_eq!(left_of("io.max", "8:0 rbps=1", "8:0 rbps=9"), None);
        assert_eq!(left_of("pids.max", "5", "6"), None);
    }

    #[test]
    fn a_value_is_held_as_the_kernel_keeps_it() {
        for (file, written, now, holds_it) in [
            ("memory.max", "1048577", "1048576", true),
            ("memory.max", "8M", "8388608", true),
            ("memory.max", "8388608", "8388608", true),
            ("memory.max", "8388608", "8392704", false),
            ("memory.max", "max", "max", true),
            ("memory.max", "8M", "max", false),
            ("memory.limit_in_bytes", "-1", "9223372036854771712", true),
            ("hugetlb.1GB.limit_in_bytes", "-1", "9223372035781033984", true),
            ("cpu.cfs_quota_us", "-1", "-1", true),
            ("cpu.cfs_quota_us", "-1", "5000", false),
            ("cpu.max", "5000 100000", "5000 100000", true),
            ("cpu.max", "max 100000", "5000 100000", false),
            ("cpuset.cpus", "0-3,4-7", "0-7", true),
            ("cpuset.cpus", "0-3", "0-7", false),
            ("cpuset.cpus", "0", "", false),
            ("memory.oom_control", "1", "oom_kill_disable 1\nunder_oom 0", true),
            ("memory.oom_control", "0", "oom_kill_disable 1\nunder_oom 0", false),
            ("pids.max", "1025", "1025", true),
            ("io.weight", "910", "default 910\n8:0 5", true),
            ("io.weight", "8:0 5", "default 910\n8:0 5", true),
            ("io.weight", "8:0 6", "default 910\n8:0 5", false),
            ("io.weight", "8:16 6", "default 910\n8:0 5", false),
            (
                "io.max",
                "8:0 rbps=5 wbps=max riops=max wiops=max",
                "8:0 rbps=5 wbps=max riops=max wiops=max",
                true,
            ),
            ("io.max", "8:0 rbps=5", "8:0 rbps=5 wbps=7 riops=max wiops=max", true),
            ("io.max", "8:0 rbps=5 wbps=max", "8:0 rbps=5 wbps=7 riops=max wiops=max", false),
            ("io.max", "8:0 rbps=max wbps=max riops=max wiops=max", "", true),
            ("io.max", "8:0 rbps=18446744073709551615", "", true),
            ("blkio.throttle.read_bps_device", "8:0 0", "", true),
            ("blkio.throttle.read_bps_device", "8:0 9", "8:16 9", false),
            ("rdma.max", "a hca_handle=3", "a hca_handle=3 hca_object=max", true),
            ("rdma.max", "a hca_handle=3", "", false),
            ("cpuset.cpus.partition", "root", "root invalid (no CPUs)", false),
            ("cpuset.cpus.exclusive", "0,1", "0-1", true),
            ("hugetlb.2MB.max", "3000000", "2097152", true),
            ("hugetlb.2MB.max", "5000000", "2097152", false),
            ("cpu.uclamp.min", "50", "50.00", true),
            ("cpu.uclamp.min", "12.5", "12.50", true),
            ("cpu.uclamp.max", "100", "max", true),
            ("cpu.uclamp.max", "12.5", "12.51", false),
        ] {
            assert_eq!(holds(file, written, now, 4096), holds_it, "{file}: {written:?} in {now:?}");
        }
    }

    #[test]
    fn lines_are_merged_value_by_value() {
        let mut lines = Lines::parse("8:0 rbps=1 wbps=2\n8:16 rbps=3\n");
        lines.extend(Lines::parse("8:0 rbps=9 riops=4\n8:32 rbps=5"));
        assert_eq!(lines.to_string(), "8:0 rbps=9 riops=4 wbps=2\n8:16 rbps=3\n8:32 rbps=5");
        lines.remove("8:16", "rbps");
        lines.remove("8:0", "rbps");
        lines.remove("8:0", "nosuch");
        assert_eq!(lines.to_string(), "8:0 riops=4 wbps=2\n8:32 rbps=5");
        assert_eq!((lines.get("8:0", "wbps"), lines.get("8:0", "rbps")), (Some("2"), None));
        assert_eq!(Lines::parse("100").to_string(), "default 100");
    }
}
