//! Names that a directory in a cgroup file system cannot have, or must not.

use crate::resources::HugePageSize;

/// The leaf beside a sandbox that takes what is drained out of it, where the parent itself cannot. It stays, until somebody
/// removes it when it is empty: the end of another sandbox, or gc.
pub(crate) const DRAINED: &str = "drained";

/// The leaf below a v2 cgroup that takes processes in its place, once controllers are enabled for its children.
pub(crate) const EVACUATED: &str = "evacuated";

/// The longest name of a directory, in bytes: `NAME_MAX`.
pub(super) const NAME_MAX: usize = 255;

/// Checks one component of a path that is neither empty nor `.` nor `..`; the error says what is wrong with it.
pub(super) fn check(name: &str) -> Result<(), String> {
    if name.contains('\0') {
        return Err(format!("the component {name:?} contains a NUL byte, which no file name can"));
    }
    if name.contains('\n') {
        // The kernel refuses it too: /proc/PID/cgroup has one cgroup a line.
        return Err(format!("the component {name:?} contains a newline, which no cgroup's name can"));
    }
    if name.len() > NAME_MAX {
        let start: String = name.chars().take(24).collect();
        return Err(format!(
            "the component {start:?}… has {} bytes; a name has at most {NAME_MAX}",
            name.len()
        ));
    }
    if name.starts_with("cgroup.") {
        return Err(format!(
            "the component {name:?} begins with \"cgroup.\", which is kept for the kernel's own files"
        ));
    }
    if name == DRAINED {
        return Err(format!(
            "the component {name:?} is kept for processes that are drained out of a sandbox beside it"
        ));
    }
    if is_interface_file(name) {
        return Err(format!(
            "the component {name:?} is the name of a cgroup interface file; the two would collide. \
             Any other name will do"
        ));
    }
    Ok(())
}

/// Whether the kernel gives a file of this name to cgroups, v1 or v2. A directory of that name makes mkdir fail
/// (EEXIST), or, made before, enabling the controller.
fn is_interface_file(name: &str) -> bool {
    if matches!(name, "tasks" | "notify_on_release" | "release_agent") {
        return true;
    }
    let Some((controller, file)) = name.split_once('.') else { return false };
    if controller == "hugetlb" {
        return file
            .split_once('.')
            .is_some_and(|(size, file)| HugePageSize::parse(size).is_some() && HUGETLB.contains(&file));
    }
    FILES.iter().any(|(name, files)| *name == controller && files.contains(&file))
}

/// The files of each controller, both versions, up to Linux 6.18.
#[rustfmt::skip]
const FILES: &[(&str, &[&str])] = &[
    ("cpu", &[
        "cfs_burst_us", "cfs_period_us", "cfs_quota_us", "idle", "max", "max.burst", "pressure", "rt_period_us",
        "rt_runtime_us", "shares", "stat", "stat.local", "uclamp.max", "uclamp.min", "weight", "weight.nice",
    ]),
    ("cpuacct", &[
        "stat", "usage", "usage_all", "usage_percpu", "usage_percpu_sys", "usage_percpu_user", "usage_sys",
        "usage_user",
    ]),
    ("cpuset", &[
        "cpu_exclusive", "cpus", "cpus.effective", "cpus.exclusive", "cpus.exclusive.effective", "cpus.isolated",
        "cpus.partition", "effective_cpus", "effective_mems", "mem_exclusive", "mem_hardwall", "memory_migrate",
        "memory_pressure", "memory_pressure_enabled", "memory_spread_page", "memory_spread_slab", "mems",
        "mems.effective", "sched_load_balance", "sched_relax_domain_level",
    ]),
    ("memory", &[
        "current", "events", "events.local", "failcnt", "force_empty", "high", "kmem.failcnt",
        "kmem.limit_in_bytes", "kmem.max_usage_in_bytes", "kmem.slabinfo", "kmem.tcp.failcnt",
        "kmem.tcp.limit_in_bytes", "kmem.tcp.max_usage_in_bytes", "kmem.tcp.usage_in_bytes", "kmem.usage_in_bytes",
        "limit_in_bytes", "low", "max", "max_usage_in_bytes", "memsw.failcnt", "memsw.limit_in_bytes",
        "memsw.max_usage_in_bytes", "memsw.usage_in_bytes", "min", "move_charge_at_immigrate", "numa_stat",
        "oom.group", "oom_control", "peak", "pressure", "pressure_level", "reclaim", "soft_limit_in_bytes", "stat",
        "swap.current", "swap.events", "swap.high", "swap.max", "swap.peak", "swappiness", "usage_in_bytes",
        "use_hierarchy", "zswap.current", "zswap.max", "zswap.writeback",
    ]),
    ("io", &[
        "bfq.weight", "cost.model", "cost.qos", "latency", "low", "max", "pressure", "prio.class", "stat", "weight",
    ]),
    ("blkio", &[
        "bfq.avg_queue_size", "bfq.dequeue", "bfq.empty_time", "bfq.group_wait_time", "bfq.idle_time",
        "bfq.io_merged", "bfq.io_merged_recursive", "bfq.io_queued", "bfq.io_queued_recursive",
        "bfq.io_service_bytes", "bfq.io_service_bytes_recursive", "bfq.io_service_time",
        "bfq.io_service_time_recursive", "bfq.io_serviced", "bfq.io_serviced_recursive", "bfq.io_wait_time",
        "bfq.io_wait_time_recursive", "bfq.sectors", "bfq.sectors_recursive", "bfq.time", "bfq.time_recursive",
        "bfq.weight", "bfq.weight_device", "io_merged", "io_merged_recursive", "io_queued", "io_queued_recursive",
        "io_service_bytes", "io_service_bytes_recursive", "io_service_time", "io_service_time_recursive",
        "io_serviced", "io_serviced_recursive", "io_wait_time", "io_wait_time_recursive", "latency", "leaf_weight",
        "leaf_weight_device", "prio.class", "reset_stats", "sectors", "sectors_recursive",
        "throttle.io_service_bytes", "throttle.io_service_bytes_recursive", "throttle.io_serviced",
        "throttle.io_serviced_recursive", "throttle.low", "throttle.read_bps_device", "throttle.read_iops_device",
        "throttle.write_bps_device", "throttle.write_iops_device", "time", "time_recursive", "weight",
        "weight_device",
    ]),
    ("pids", &["current", "events", "events.local", "max", "peak"]),
    ("devices", &["allow", "deny", "list"]),
    ("freezer", &["parent_freezing", "self_freezing", "state"]),
    ("rdma", &["current", "events", "events.local", "max", "peak"]),
    ("misc", &["capacity", "current", "events", "events.local", "max", "peak"]),
    ("dmem", &["capacity", "current", "low", "max", "min"]),
    ("net_cls", &["classid"]),
    ("net_prio", &["ifpriomap", "prioidx"]),
    ("irq", &["pressure"]),
];

const HUGETLB: &[&str] = &[
    "current",
    "events",
    "events.local",
    "failcnt",
    "limit_in_bytes",
    "max",
    "max_usage_in_bytes",
    "numa_stat",
    "rsvd.current",
    "rsvd.failcnt",
    "rsvd.limit_in_bytes",
    "rsvd.max",
    "rsvd.max_usage_in_bytes",
    "rsvd.usage_in_bytes",
    "usage_in_bytes",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_the_component_and_its_reason() {
        for (name, reason) in [
            ("a\0b", "NUL"),
            ("a\nb", "newline"),
            (&*"x".repeat(256), "256 bytes; a name has at most 255"),
            (&*"ü".repeat(128), "256 bytes"),
            ("cgroup.procs", "\"cgroup.\""),
            ("cgroup.x", "\"cgroup.\""),
            ("drained", "kept for processes"),
            ("tasks", "interface file"),
            ("notify_on_release", "interface file"),
            ("release_agent", "interface file"),
            ("cpu.max", "interface file"),
            ("memory.limit_in_bytes", "interface file"),
            ("memory.memsw.limit_in_bytes", "interface file"),
            ("io.bfq.weight", "interface file"),
            ("hugetlb.2MB.max", "interface file"),
            ("hugetlb.1GB.rsvd.limit_in_bytes", "interface file"),
        ] {
            let why = check(name).unwrap_err();
            assert!(why.contains(reason) && why.contains("the component"), "{name:?}: {why}");
        }
    }

    #[test]
    fn names_that_only_look_like_interface_files_are_fine() {
        for name in [
            &*"x".repeat(255),
            "io.containerd.x",
            "cpu",
            "cpu.",
            "memory.max2",
            "hugetlb.max",
            "hugetlb.xMB.max",
            "hugetlb.2MB.maximum",
            "task",
            "cgroups",
            "a:b",
            "-a",
            "drained2",
        ] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn every_interface_file_of_this_kernel_is_refused() {
        let mut seen = 0;
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for directory in hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let directory = std::fs::canonicalize(directory).unwrap();
            if !directory.join("cgroup.procs").exists() {
                continue;
            }
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_file() && !name.starts_with("debug.") {
                    assert!(check(&name).is_err(), "{name} is missing in the list");
                    seen += 1;
                }
            }
        }
        if seen == 0 {
            eprintln!("not tested here: no cgroup file system at /sys/fs/cgroup");
        }
    }
}
