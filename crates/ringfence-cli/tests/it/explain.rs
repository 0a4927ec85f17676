//! `explain` says what the kernel does: an ancestor with less decides, of each kind of limit.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::support::{
    Sandbox, binary, by_systemd, finish, hierarchies, hierarchy_of, is_on_v1, mode, send, skip, units_named,
    until,
};
use serde_json::{Value, json};

testbed! {
    drivers: "cgroupfs systemd";
}

const MIB: u64 = 1 << 20;

/// A cgroup of the test's own in every hierarchy, above the sandbox: with systemd a slice. Gone when dropped, so it is made
/// before the sandbox.
struct Parent {
    name: String,
    slice: Option<Sandbox>,
}

impl Parent {
    fn named(name: &str) -> Self {
        if by_systemd() {
            let slice = Sandbox::parent(name, &[]);
            return Self { name: slice.directory.clone(), slice: Some(slice) };
        }
        let parent = Self { name: format!("rf-ex-{}-{name}", std::process::id()), slice: None };
        for dir in parent.dirs() {
            fs::create_dir(&dir).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // On v1 a new set is empty.
                if let Ok(all) = fs::read_to_string(dir.parent().unwrap().join(file)) {
                    fs::write(dir.join(file), all.trim()).unwrap();
                }
            }
        }
        parent
    }

    fn dirs(&self) -> Vec<PathBuf> {
        hierarchies().iter().map(|hierarchy| hierarchy.point.join(&self.name)).collect()
    }

    fn path(&self) -> String {
        format!("/{}", self.name)
    }

    fn dir(&self, controller: &str) -> PathBuf {
        hierarchy_of(controller).point.join(&self.name)
    }

    /// Makes the sandbox below it.
    fn create(&self, sandbox: &Sandbox, options: &[&str]) -> String {
        let path = format!("{}/{}", self.path(), sandbox.directory);
        let given = self.slice.as_ref().map(|slice| sandbox.path_in(slice));
        sandbox.create(&[options, &["--allow-nested", "--path", given.as_ref().unwrap_or(&path)]].concat());
        path
    }

    /// Writes to the files that v1 or v2 has for it, in order.
    fn set(&self, controller: &str, v1: &[(&str, &str)], v2: &[(&str, &str)]) {
        write(&self.dir(controller), if is_on_v1(controller) { v1 } else { v2 });
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        if self.slice.is_some() {
            return;
        }
        for dir in self.dirs() {
            for _ in 0..200 {
                if fs::remove_dir(&dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

#[track_caller]
fn write(dir: &Path, values: &[(&str, &str)]) {
    for (file, value) in values {
        fs::write(dir.join(file), value).unwrap_or_else(|error| panic!("{file} <- {value}: {error}"));
    }
}

/// What holds, who decides it, and what the parent and the sandbox have themselves.
#[track_caller]
fn assert_explained(
    sandbox: &Sandbox,
    key: &str,
    effective: Value,
    decided_by: Option<&str>,
    own: [Value; 2],
) {
    let explained = sandbox.json("explain", &[key]);
    assert_eq!(explained["key"], key);
    assert_eq!(explained["effective"], effective, "{explained}");
    assert_eq!(explained["decided_by"], json!(decided_by), "{explained}");
    let chain = explained["chain"].as_array().unwrap();
    assert_eq!(chain.len(), 3, "{explained}");
    assert_eq!(chain[0]["path"], "/");
    for (level, own) in chain[1..].iter().zip(own) {
        assert_eq!(level["value"], own, "{explained}");
    }
}

/// A limit of which the least holds: its options, names and files, and what the sandbox and its parent are given.
struct Limit {
    options: &'static [&'static str],
    keys: &'static [&'static str],
    v1: Option<(&'static str, [u64; 3])>,
    v2: (&'static str, [u64; 3]),
}

/// In this order: on v1 memory and swap together are never less than memory alone. The numbers: of the sandbox, more, less.
const LIMITS: &[Limit] = &[
    Limit {
        options: &["--memory", "64M", "--memory-swap", "96M"],
        keys: &["memory", "memory.limit", "memory.max", "memory.limit_in_bytes"],
        v1: Some(("memory.limit_in_bytes", [64 * MIB, 128 * MIB, 32 * MIB])),
        v2: ("memory.max", [64 * MIB, 128 * MIB, 32 * MIB]),
    },
    Limit {
        options: &[],
        keys: &["memory.swap", "memory.swap.max", "memory.memsw.limit_in_bytes"],
        v1: Some(("memory.memsw.limit_in_bytes", [96 * MIB, 192 * MIB, 48 * MIB])),
        v2: ("memory.swap.max", [32 * MIB, 64 * MIB, 16 * MIB]),
    },
    Limit {
        options: &["--unified", "memory.high=50331648"],
        keys: &["memory.high"],
        v1: None,
        v2: ("memory.high", [48 * MIB, 96 * MIB, 24 * MIB]),
    },
    Limit {
        options: &["--pids", "100"],
        keys: &["pids", "pids.limit", "pids.max"],
        v1: Some(("pids.max", [100, 200, 50])),
        v2: ("pids.max", [100, 200, 50]),
    },
];

#[test]
fn the_least_limit_on_the_way_from_the_root_holds() {
    let parent = Parent::named("least");
    let sandbox = Sandbox::named("least");
    let on_v1 = |limit: &Limit| is_on_v1(limit.v2.0.split('.').next().unwrap());
    let options = LIMITS.iter().filter(|limit| limit.v1.is_some() || mode() == "v2");
    let options: Vec<_> = options.flat_map(|limit| limit.options).copied().collect();
    let path = parent.create(&sandbox, &options);
    for limit in LIMITS {
        let Some((file, [own, more, less])) = (if on_v1(limit) { limit.v1 } else { Some(limit.v2) }) else {
            let error = sandbox.attempt_json("explain", &[limit.keys[0]]).exits(1).error();
            assert_eq!((&error["kind"], &error["value"]), (&json!("unsupported"), &json!(limit.keys[0])));
            continue;
        };
        let controller = file.split('.').next().unwrap();
        if sandbox.file(file).is_none() {
            let error = sandbox.attempt_json("explain", &[limit.keys[0]]).exits(1).error();
            assert_eq!(error["kind"], "unsupported", "{error}");
            skip(&format!("no {file} here"));
            continue;
        }
        for key in limit.keys {
            assert_explained(&sandbox, key, own.into(), Some(&path), [json!("max"), own.into()]);
        }
        let set = |value: u64| write(&parent.dir(controller), &[(file, &value.to_string())]);
        let key = limit.keys[0];
        set(more);
        assert_explained(&sandbox, key, own.into(), Some(&path), [more.into(), own.into()]);
        set(own);
        assert_explained(&sandbox, key, own.into(), Some(&path), [own.into(), own.into()]);
        set(less);
        assert_explained(&sandbox, key, less.into(), Some(&parent.path()), [less.into(), own.into()]);
    }

    sandbox.does("set", &["--pids", "max"]);
    parent.set("pids", &[("pids.max", "max")], &[("pids.max", "max")]);
    assert_explained(&sandbox, "pids", json!("max"), None, [json!("max"), json!("max")]);
}

#[test]
fn the_least_quota_in_proportion_to_its_period_holds() {
    let parent = Parent::named("cpu");
    let sandbox = Sandbox::named("cpu");
    let path = parent.create(&sandbox, &["--cpus", "0.5"]);
    let set = |quota: &str, period: &str| {
        let v1 =
            [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", if quota == "max" { "-1" } else { quota })];
        parent.set("cpu", &v1, &[("cpu.max", &format!("{quota} {period}"))]);
    };
    let half = || json!("50000 100000");
    assert_explained(&sandbox, "cpu", half(), Some(&path), [json!("max 100000"), half()]);
    // 0.6 of a CPU, with the smaller number.
    set("30000", "50000");
    for key in ["cpu", "cpu.quota", "cpu.max", "cpu.cfs_quota_us"] {
        assert_explained(&sandbox, key, half(), Some(&path), [json!("30000 50000"), half()]);
    }
    // v1 takes no less above than below.
    if is_on_v1("cpu") {
        sandbox.does("set", &["--cpus", "max"]);
    }
    let own = if is_on_v1("cpu") { json!("max 100000") } else { half() };
    // 0.4 of a CPU, with the larger number.
    set("200000", "500000");
    let expected = json!("200000 500000");
    assert_explained(&sandbox, "cpu", expected.clone(), Some(&parent.path()), [expected, own]);
    let table = sandbox.does("explain", &["cpu"]).stdout;
    assert!(table.contains("200000 500000 (0.4 CPUs)"), "{table}");

    sandbox.does("set", &["--cpus", "max"]);
    set("max", "100000");
    let unlimited = || json!("max 100000");
    assert_explained(&sandbox, "cpu", unlimited(), None, [unlimited(), unlimited()]);
}

#[test]
fn of_a_sandbox_in_parts_the_part_decides_that_has_the_least() {
    let parent = Parent::named("parts");
    let sandbox = Sandbox::named("parts");
    let limits = ["--cpus", "0.5", "--overhead-cpus", "0.75", "--cpuset-cpus", "0", "--memory", "64M"];
    let path = parent.create(&sandbox, &[&["--overhead", "nested"], &limits[..]].concat());
    let part = |name: &str| format!("{path}/{name}");
    let decided = |options: &[&str]| {
        let explained = sandbox.json("explain", options);
        let last = explained["chain"].as_array().unwrap().last().unwrap().clone();
        [explained["effective"].clone(), explained["decided_by"].clone(), last["path"].clone()]
    };
    let (half, more) = (json!("50000 100000"), json!("75000 100000"));
    for key in ["cpu", "cpu.max", "cpu.cfs_quota_us"] {
        assert_eq!(decided(&[key]), [half.clone(), part("vcpu").into(), part("vcpu").into()]);
        assert_eq!(decided(&[key, "--part", "vcpu"]), decided(&[key]));
        let overhead = [more.clone(), part("overhead").into(), part("overhead").into()];
        assert_eq!(decided(&[key, "--part", "overhead"]), overhead);
    }
    assert_eq!(decided(&["cpuset"]), [json!("0"), part("vcpu").into(), part("vcpu").into()]);
    // All that there are.
    let all = sandbox.json("explain", &["cpuset", "--part", "overhead"]);
    assert_eq!((&all["effective"], &all["decided_by"]), (&all["chain"][0]["value"], &json!("/")), "{all}");
    // What threads cannot have by themselves is the whole's, whichever part is meant.
    assert_eq!(decided(&["memory"]), [json!(64 * MIB), path.clone().into(), path.clone().into()]);
    let error = sandbox.attempt_json("explain", &["memory", "--part", "vcpu"]).exits(2).error();
    assert_eq!((&error["setting"], &error["value"]), (&json!("key"), &json!("memory")), "{error}");

    // Above the parts, less holds for both; v1 takes no less above than below.
    let less = if is_on_v1("cpu") { more } else { json!("40000 100000") };
    let quota = less.as_str().unwrap().split(' ').next().unwrap();
    parent.set("cpu", &[("cpu.cfs_quota_us", quota)], &[("cpu.max", quota)]);
    for name in ["vcpu", "overhead"] {
        let [effective, decided_by, _] = decided(&["cpu", "--part", name]);
        let expected = match name {
            "vcpu" if is_on_v1("cpu") => [half.clone(), part(name).into()],
            _ if is_on_v1("cpu") => [less.clone(), part(name).into()],
            _ => [less.clone(), parent.path().into()],
        };
        assert_eq!([effective, decided_by], expected);
    }

    let undivided = Sandbox::named("undivided");
    parent.create(&undivided, &[]);
    let error = undivided.attempt_json("explain", &["cpu", "--part", "vcpu"]).exits(2).error();
    assert_eq!((&error["setting"], &error["value"]), (&json!("part"), &json!("vcpu")), "{error}");
}

#[test]
fn the_level_from_which_on_the_cpus_are_these_decides() {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    if online.trim() != "0-1" {
        return skip("written for two CPUs");
    }
    let parent = Parent::named("cpuset");
    let sandbox = Sandbox::named("cpuset");
    let path = parent.create(&sandbox, &["--cpuset-cpus", "0-1", "--cpuset-mems", "0"]);
    let all = || json!("0-1");
    for key in ["cpuset", "cpu.cpus", "cpuset.cpus", "cpuset.effective_cpus"] {
        assert_explained(&sandbox, key, all(), Some("/"), [all(), all()]);
    }
    assert_explained(&sandbox, "cpu.mems", json!("0"), Some("/"), [json!("0"), json!("0")]);
    sandbox.does("set", &["--cpuset-cpus", "1"]);
    assert_explained(&sandbox, "cpuset", json!("1"), Some(&path), [all(), json!("1")]);
    let written = fs::write(parent.dir("cpuset").join("cpuset.cpus"), "1");
    if !is_on_v1("cpuset") && written.as_ref().is_err_and(|error| error.kind() == ErrorKind::ResourceBusy) {
        return skip("v2 before Linux 5.17 takes no set above that the one below does not lie in");
    }
    written.unwrap();
    assert_explained(&sandbox, "cpuset", json!("1"), Some(&parent.path()), [json!("1"), json!("1")]);
    // v2 takes a set above that the one below does not lie in.
    if !is_on_v1("cpuset") {
        parent.set("cpuset", &[], &[("cpuset.cpus", "0")]);
        assert_explained(&sandbox, "cpuset", json!("0"), Some(&parent.path()), [json!("0"), json!("0")]);
    }
}

#[test]
fn where_a_controller_is_not_enabled_what_is_above_holds() {
    if mode() != "v2" {
        return skip("controllers of v1 are enabled everywhere");
    }
    let parent = Parent::named("inherits");
    let sandbox = Sandbox::named("inherits");
    let path = parent.create(&sandbox, &["--cpuset-cpus", "0"]);
    assert_explained(&sandbox, "cpuset", json!("0"), Some(&path), [json!("0-1"), json!("0")]);
    parent.set("cpuset", &[], &[("cgroup.subtree_control", "-cpuset"), ("cpuset.cpus", "1")]);
    assert_explained(&sandbox, "cpuset", json!("1"), Some(&parent.path()), [json!("1"), Value::Null]);
    parent.set("memory", &[], &[("memory.max", "67108864"), ("cgroup.subtree_control", "-memory")]);
    let expected = json!(64 * MIB);
    assert_explained(&sandbox, "memory", expected.clone(), Some(&parent.path()), [expected, Value::Null]);
    let level = &sandbox.json("explain", &["memory"])["chain"][2];
    assert_eq!(*level, json!({"path": path}), "what is not there has no key");
}

/// A throttle as the kernel's file wants it.
fn throttle(device: &str, kind: &str, value: u64) -> (String, String) {
    if !is_on_v1("blkio") {
        return ("io.max".to_owned(), format!("{device} {kind}={value}"));
    }
    let file = match kind {
        "rbps" => "read_bps",
        "wbps" => "write_bps",
        "riops" => "read_iops",
        _ => "write_iops",
    };
    (format!("blkio.throttle.{file}_device"), format!("{device} {value}"))
}

fn set_throttle(dir: &Path, device: &str, kind: &str, value: u64) -> std::io::Result<()> {
    let (file, value) = throttle(device, kind, value);
    fs::write(dir.join(file), value)
}

/// The numbers of a disk that can be throttled.
fn disk(dir: &Path) -> Option<String> {
    let disks = fs::read_dir("/sys/block").unwrap().flatten();
    let mut numbers = disks.filter_map(|disk| fs::read_to_string(disk.path().join("dev")).ok());
    numbers.find_map(|device| {
        let device = device.trim().to_owned();
        set_throttle(dir, &device, "rbps", 100 * MIB).is_ok().then_some(device)
    })
}

#[test]
fn each_throttle_of_a_device_is_explained_by_itself() {
    let parent = Parent::named("io");
    let sandbox = Sandbox::named("io");
    let path = parent.create(&sandbox, &[]);
    let own = sandbox.dir("blkio");
    let nothing = sandbox.json("explain", &["io"]);
    assert_eq!((&nothing["effective"], &nothing["decided_by"]), (&json!({}), &Value::Null), "{nothing}");
    let Some(device) = disk(&parent.dir("blkio")) else {
        return skip("no disk can be throttled here");
    };
    for (dir, kind, value) in [
        (&parent.dir("blkio"), "rbps", MIB),
        (&parent.dir("blkio"), "wiops", 100),
        (&own, "rbps", 2 * MIB),
        (&own, "riops", 50),
        (&own, "wiops", 50),
    ] {
        set_throttle(dir, &device, kind, value).unwrap();
    }
    let explained = sandbox.json("explain", &["io"]);
    let above = json!({&device: {"rbps": MIB, "wiops": 100}});
    let below = json!({&device: {"rbps": 2 * MIB, "riops": 50, "wiops": 50}});
    assert_eq!(explained["chain"][1]["value"], above, "{explained}");
    assert_eq!(explained["chain"][2]["value"], below, "{explained}");
    let (effective, decided_by) = if is_on_v1("blkio") {
        // Each cgroup by itself: see the next test.
        (below, json!({&device: {"rbps": path, "riops": path, "wiops": path}}))
    } else {
        (
            json!({&device: {"rbps": MIB, "riops": 50, "wiops": 50}}),
            json!({&device: {"rbps": parent.path(), "riops": path, "wiops": path}}),
        )
    };
    assert_eq!(explained["effective"], effective, "{explained}");
    assert_eq!(explained["decided_by"], decided_by, "{explained}");
    assert_eq!(explained["ancestors"], if is_on_v1("blkio") { "none" } else { "all" });

    let one = sandbox.json("explain", &["blkio.throttle.read_iops_device"]);
    assert_eq!(one["effective"], json!({&device: {"riops": 50}}), "{one}");
    assert_eq!(one["chain"][1]["value"], json!({}), "{one}");
    let table = sandbox.does("explain", &["io.max"]).stdout;
    assert!(table.lines().any(|line| line.starts_with(&format!("{device} riops"))), "{table}");
}

#[test]
fn a_throttle_above_holds_below_as_explain_has_it() {
    let parent = Parent::named("reads");
    let sandbox = Sandbox::named("reads");
    let path = parent.create(&sandbox, &[]);
    // Of the working directory: that of the sandbox's files may be in memory.
    let file = tempfile::Builder::new().prefix("rf-ex-").tempfile_in(".").unwrap();
    fs::write(file.path(), vec![0x5a; 3 * MIB as usize]).unwrap();
    file.as_file().sync_all().unwrap();
    let device = file.as_file().metadata().unwrap().dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let throttle = |dir: &Path, value| set_throttle(dir, &device, "rbps", value);
    if let Err(error) = throttle(&parent.dir("blkio"), MIB) {
        return skip(&format!("{device} cannot be throttled: {error}"));
    }
    let source = format!("if={}", file.path().display());
    let reads = || {
        let since = Instant::now();
        sandbox.does("exec", &["--", "dd", &source, "of=/dev/null", "iflag=direct", "bs=256k"]);
        since.elapsed()
    };
    let decided_by = || sandbox.json("explain", &["io"])["decided_by"][&device]["rbps"].clone();

    // 0 is no limit on v1.
    let free = if is_on_v1("blkio") { 0 } else { 1000 * MIB };
    let set = |above, own| {
        throttle(&parent.dir("blkio"), above).unwrap();
        throttle(&sandbox.dir("blkio"), own).unwrap();
    };
    let is_as_explained = || {
        set(MIB, free);
        let (above, decided_above) = (reads(), decided_by());
        set(free, MIB);
        let own = reads();
        assert_eq!(decided_by(), path);
        if is_on_v1("blkio") {
            assert_eq!(decided_above, Value::Null);
            above * 2 < own
        } else {
            assert_eq!(decided_above, parent.path());
            above * 2 > own
        }
    };
    // On a machine that is busy meanwhile, what is free may be slow.
    assert!((0..3).any(|_| is_as_explained()));
}

#[test]
fn huge_pages_are_explained_by_their_size() {
    if !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        return skip("no huge pages of 2 MiB");
    }
    let hierarchy = hierarchy_of("hugetlb");
    let available = fs::read_to_string(hierarchy.point.join("cgroup.controllers")).unwrap_or_default();
    if hierarchy.is_v2 && !available.contains("hugetlb") {
        return skip("no hugetlb controller");
    }
    let parent = Parent::named("hugetlb");
    if hierarchy.is_v2 {
        for dir in [&hierarchy.point, &parent.dir("hugetlb")] {
            fs::write(dir.join("cgroup.subtree_control"), "+hugetlb").unwrap();
        }
    }
    let sandbox = Sandbox::named("hugetlb");
    let path = parent.create(&sandbox, &[]);
    let files = if hierarchy.is_v2 {
        ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]
    } else {
        ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"]
    };
    let (less, more) = (json!(4 * MIB), json!(8 * MIB));
    for (key, file) in [("hugepageLimits.2MB", files[0]), ("hugetlb.2MB.rsvd.max", files[1])] {
        if sandbox.file(file).is_none() {
            skip(&format!("no {file} here"));
            continue;
        }
        assert_explained(&sandbox, key, json!("max"), None, [json!("max"), json!("max")]);
        write(&sandbox.dir("hugetlb"), &[(file, &more.to_string())]);
        assert_explained(&sandbox, key, more.clone(), Some(&path), [json!("max"), more.clone()]);
        write(&parent.dir("hugetlb"), &[(file, &less.to_string())]);
        assert_explained(&sandbox, key, less.clone(), Some(&parent.path()), [less.clone(), more.clone()]);
    }
    let error = sandbox.attempt_json("explain", &["hugepageLimits.4MB"]).exits(1).error();
    assert_eq!(error["kind"], "unsupported");
    assert!(error["message"].as_str().unwrap().contains("2MB"), "{error}");
}

#[test]
fn in_a_container_the_chain_begins_at_the_root_that_is_seen() {
    let parent = Parent::named("part");
    // The parent has the controller where a sandbox below it is limited.
    let first = Sandbox::named("first");
    parent.create(&first, &["--pids", "100"]);
    parent.set("pids", &[("pids.max", "50")], &[("pids.max", "50")]);
    let sandbox = Sandbox::named("part");
    let mut script = String::new();
    for (hierarchy, dir) in hierarchies().iter().zip(parent.dirs()) {
        script += &format!("mount --bind {} {}\n", dir.display(), hierarchy.point.display());
    }
    script += "$RF create -q $ID --pids 60 > /dev/null; $RF -o json explain $ID pids; $RF explain $ID pids; $RF rm $ID";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", &script]);
    command.env("ID", &sandbox.id).env("RF", binary()).env("RINGFENCE_STATE_DIR", sandbox.state_dir());
    command.env("RINGFENCE_DRIVER", "cgroupfs");
    let printed = finish(command).exits(0).stdout;
    let (json, table) = printed.split_once("\n}\n").unwrap();
    let explained: Value = serde_json::from_str(&format!("{json}\n}}")).unwrap();
    assert_eq!(explained["effective"], 50, "{explained}");
    assert_eq!(explained["decided_by"], "/", "{explained}");
    assert_eq!(explained["chain"][0], json!({"path": "/", "value": 50}), "{explained}");
    assert_eq!(explained["ancestors"], "visible", "{explained}");
    assert!(table.contains("not the machine's root"), "{table}");
    // From outside the whole way is seen.
    let explained = first.json("explain", &["pids"]);
    assert_eq!((&explained["ancestors"], &explained["decided_by"]), (&json!("all"), &json!(parent.path())));
}

#[test]
fn a_key_that_there_is_not_is_answered_with_those_that_there_are() {
    let sandbox = Sandbox::named("no-key");
    for key in ["memory.nonsense", "", "hugetlb.2XB.max", "../memory.max", "memory.max\n"] {
        let error = sandbox.attempt_json("explain", &[key]).exits(2).error();
        assert_eq!((&error["kind"], &error["setting"]), (&json!("invalid_input"), &json!("key")), "{error}");
        assert_eq!(error["value"], key);
        for known in ["memory.limit", "cpu.max", "hugepageLimits.SIZE", "blkio.throttle.read_bps_device"] {
            assert!(error["message"].as_str().unwrap().contains(known), "{error}");
        }
    }
}

#[test]
fn a_sandbox_that_is_not_there_and_one_whose_cgroup_is_gone_are_3() {
    let sandbox = Sandbox::named("gone");
    let error = sandbox.attempt_json("explain", &["memory"]).exits(3).error();
    assert_eq!((&error["kind"], &error["value"]), (&json!("not_found"), &json!(sandbox.id)), "{error}");

    sandbox.create(&["--memory", "64M"]);
    if by_systemd() {
        // A scope ends with its last process.
        send(sandbox.holder().unwrap(), rustix::process::Signal::KILL);
        until("ended", || units_named(&sandbox.directory).is_empty());
        for key in ["memory", "pids", "cpuset"] {
            let error = sandbox.attempt_json("explain", &[key]).exits(3).error();
            assert_eq!(error["kind"], "not_found", "{error}");
        }
        return;
    }
    let dirs = sandbox.directories();
    let (of_memory, others): (Vec<_>, Vec<_>) =
        dirs.into_iter().partition(|dir| dir.starts_with(hierarchy_of("memory").point));
    let remove = |dir: &PathBuf| until("removed", || fs::remove_dir(dir).is_ok() || !dir.exists());
    of_memory.iter().for_each(remove);
    let error = sandbox.attempt_json("explain", &["memory"]).exits(3).error();
    assert_eq!(error["kind"], "not_found", "{error}");
    if is_on_v1("memory") {
        assert!(error["message"].as_str().unwrap().contains("memory controller"), "{error}");
        sandbox.does("explain", &["pids"]);
    }
    others.iter().for_each(remove);
    let error = sandbox.attempt_json("explain", &["pids"]).exits(3).error();
    assert_eq!(error["kind"], "not_found", "{error}");
}
