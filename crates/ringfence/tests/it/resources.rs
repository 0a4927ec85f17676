//! Every resource of OCI, on a real kernel: the file holds what was asked, the kernel does what the file says, and what
//! this host cannot do is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Instant;

use crate::support::{self, Guarded, MIB, by_systemd, disks, path, skip};
use ringfence::devices::{Access, DeviceKind};
use ringfence::resources::{HugePageSize, Rdma};
use ringfence::{
    ChangeOptions, Command, Controller, DeviceNumber, DeviceRule, ErrorKind, Host, Limit, Mode, Resources,
    Sandbox, SandboxConfig, Unsupported, null,
};

testbed! {
    // Where there is an RDMA device too.
    modes: "all rdma rdma-v1";
    drivers: "cgroupfs systemd";
    // Loads modules of the kernel, which bring files with them.
    guest: "own";
}

/// Two disks, the same for all tests: some of them bring more.
fn two_disks() -> [DeviceNumber; 2] {
    static DISKS: OnceLock<Vec<DeviceNumber>> = OnceLock::new();
    let disks = DISKS.get_or_init(disks);
    [disks[0], *disks.last().unwrap()]
}

fn disk() -> DeviceNumber {
    two_disks()[0]
}

/// Loads a module of the kernel, where that can be done; whether it is there now.
fn module(arguments: &[&str]) -> bool {
    let done = std::process::Command::new("modprobe").args(arguments).output();
    done.is_ok_and(|done| done.status.success())
}

/// Whether this is a machine of the tests' own, with which they may do as they like.
fn is_testbed() -> bool {
    crate::support::soak::in_testbed()
}

/// A setting, and what its file holds: the controller, and file and value on v1 and on v2; no file: it is reported.
type Row = (Resources, Controller, Option<(String, String)>, Option<(String, String)>);

fn rows(host: &Host) -> Vec<Row> {
    let new = Resources::new;
    let [disk, other] = two_disks();
    let file = |file: &str, value: String| Some((file.to_owned(), value));
    let io_max = |device: DeviceNumber, values: [&str; 4]| {
        let [rbps, wbps, riops, wiops] = values;
        file("io.max", format!("{device} rbps={rbps} wbps={wbps} riops={riops} wiops={wiops}"))
    };
    let mut rows = vec![
        (
            new().io_read_bps(disk, 3 * MIB),
            Controller::Io,
            file("blkio.throttle.read_bps_device", format!("{disk} {}", 3 * MIB)),
            io_max(disk, [&(3 * MIB).to_string(), &(4 * MIB).to_string(), "max", "max"]),
        ),
        (
            new().io_write_bps(disk, 4 * MIB),
            Controller::Io,
            file("blkio.throttle.write_bps_device", format!("{disk} {}", 4 * MIB)),
            io_max(disk, [&(3 * MIB).to_string(), &(4 * MIB).to_string(), "max", "max"]),
        ),
        (
            new().io_read_iops(other, 500).io_write_iops(other, 600),
            Controller::Io,
            file("blkio.throttle.write_iops_device", format!("{other} 600")),
            io_max(other, ["max", "max", "500", "600"]),
        ),
        (
            new().network_class_id(0x10_0001),
            Controller::NetCls,
            file("net_cls.classid", "1048577".to_owned()),
            None,
        ),
        (
            new().network_priority("lo", 5),
            Controller::NetPrio,
            file("net_prio.ifpriomap", "lo 5".to_owned()),
            None,
        ),
    ];
    for size in &host.huge_page_sizes {
        // One byte too many: the kernel keeps whole pages.
        let limit = 2 * size.bytes();
        let value = limit.to_string();
        rows.push((
            new().hugepage_limit(*size, limit + 1),
            Controller::Hugetlb,
            file(&format!("hugetlb.{size}.limit_in_bytes"), value.clone()),
            file(&format!("hugetlb.{size}.max"), value.clone()),
        ));
        if host.capabilities.hugetlb_rsvd {
            rows.push((
                new().hugepage_limit(*size, limit + 1),
                Controller::Hugetlb,
                file(&format!("hugetlb.{size}.rsvd.limit_in_bytes"), value.clone()),
                file(&format!("hugetlb.{size}.rsvd.max"), value),
            ));
        }
    }
    let weights = new().io_weight(500);
    rows.push(match (host.capabilities.bfq_weight, host.capabilities.io_weight) {
        (true, _) => (
            weights,
            Controller::Io,
            file("blkio.bfq.weight", "500".to_owned()),
            file("io.bfq.weight", "default 500".to_owned()),
        ),
        (false, true) => (
            weights,
            Controller::Io,
            file("blkio.weight", "500".to_owned()),
            file("io.weight", "default 4950".to_owned()),
        ),
        (false, false) => (weights, Controller::Io, None, None),
    });
    rows
}

/// The lines of a controller's file.
fn lines(vm: &Sandbox, controller: Controller, file: &str) -> Vec<String> {
    let paths = vm.paths();
    let dir = paths.get(controller.v1_name()).unwrap_or_else(|| &paths["unified"]);
    let text = std::fs::read_to_string(dir.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn merged(rows: &[Row], host: &Host) -> Resources {
    let mut all = Resources::new();
    let version =
        host.hierarchy_of(Controller::Memory).map_or(ringfence::Version::V2, |(_, memory)| memory.version);
    rows.iter().for_each(|(resources, ..)| all.merge(resources, version));
    all
}

#[test]
fn each_setting_is_in_its_file_or_in_the_report() {
    if is_testbed() {
        module(&["bfq"]);
        module(&["null_blk"]);
    }
    let host = Host::detect().unwrap();
    let rows = rows(&host);
    let together = merged(&rows, &host);
    // All at once in a new cgroup, and one after the other in an old one.
    let created = Guarded::new(&host, "created", together.clone());
    let changed = Guarded::new(&host, "changed", Resources::new());
    for (resources, ..) in &rows {
        changed.change(resources).unwrap_or_else(|error| panic!("{resources:?}: {error}"));
    }
    let mut checked = 0;
    for vm in [&created, &changed] {
        assert_eq!(vm.state().resources, together);
        assert_eq!(vm.diff().unwrap(), []);
        for (resources, controller, v1, v2) in &rows {
            let Some((_, hierarchy)) = host.hierarchy_of(*controller) else {
                skip(&format!("there is no {controller} controller here"));
                continue;
            };
            match if hierarchy.version == ringfence::Version::V1 { v1 } else { v2 } {
                Some((file, value)) => {
                    let held = lines(vm, *controller, file);
                    assert!(held.contains(value), "{file}: {held:?}, after {resources:?}");
                    checked += 1;
                }
                None => skip(&format!("this host cannot do {resources:?}")),
            }
        }
    }
    assert!(checked >= 2, "nothing could be seen here");
    // Each that has no file is told.
    let report = created.state().report;
    for (resources, controller, v1, v2) in &rows {
        let version = host.hierarchy_of(*controller).map(|(_, hierarchy)| hierarchy.version);
        let can = match version {
            Some(ringfence::Version::V1) => v1.is_some(),
            Some(ringfence::Version::V2) => v2.is_some(),
            None => false,
        };
        let plan = Sandbox::plan(&host, &SandboxConfig::new(path("plan")).resources(resources.clone()));
        let told = plan.unwrap().report().unsupported().count();
        assert_eq!(told == 0, can, "{resources:?}");
        assert!(can || report.unsupported().count() > 0);
    }
    // Everything is lifted again.
    let mut lifted = Resources::new();
    for size in &host.huge_page_sizes {
        lifted = lifted.hugepage_limit(*size, Limit::Max);
    }
    for device in two_disks() {
        lifted = lifted.io_read_bps(device, Limit::Max).io_write_bps(device, Limit::Max);
        lifted = lifted.io_read_iops(device, Limit::Max).io_write_iops(device, Limit::Max);
    }
    created.change(&lifted).unwrap();
    assert_eq!(created.diff().unwrap(), []);
    if let Some((_, io)) = host.hierarchy_of(Controller::Io) {
        let files: &[&str] = match io.version {
            ringfence::Version::V1 => &["blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device"],
            ringfence::Version::V2 => &["io.max"],
        };
        files.iter().for_each(|file| assert_eq!(lines(&created, Controller::Io, file), [""; 0], "{file}"));
    }
}

#[test]
fn what_a_host_cannot_do_is_an_error_in_strict_mode_and_nothing_is_made() {
    let host = Host::detect().unwrap();
    let strange: HugePageSize = "4MB".parse().unwrap();
    let mut cannot = vec![
        (Resources::new().hugepage_limit(strange, 0), "hugepageLimits.4MB"),
        (Resources::new().io_leaf_weight(10), "blockIO.leafWeight"),
    ];
    if host.mode == Mode::V2 {
        cannot.push((Resources::new().network_class_id(1), "network.classID"));
        cannot.push((Resources::new().memory_swappiness(10), "memory.swappiness"));
    }
    for (resources, setting) in cannot {
        let wanted = resources.clone().pids_limit(7);
        let path = path("strict");
        let config = SandboxConfig::new(path.clone()).resources(wanted).unsupported(Unsupported::Refuse);
        let error = Sandbox::create(&host, &config).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some(setting)), "{error}");
        assert_eq!(ringfence::Cgroup::open(&host, &path).unwrap_err().kind(), ErrorKind::NotFound);

        let vm = Guarded::new(&host, "strict", Resources::new().pids_limit(9));
        let files = vm.files();
        let strict = ChangeOptions { unsupported: Unsupported::Refuse, ..ChangeOptions::default() };
        let error = vm.change_with(&resources.clone().pids_limit(7), strict).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some(setting)), "{error}");
        assert_eq!(vm.files(), files);
        let report = vm.change(&resources.pids_limit(7)).unwrap();
        for report in [report, vm.state().report] {
            assert!(report.unsupported().any(|line| line.setting == setting), "{report}");
        }
        assert_ne!(vm.files(), files);
    }
}

#[test]
fn what_the_kernel_refuses_names_the_device_and_leaves_everything_as_it_was() {
    let host = Host::detect().unwrap();
    let nowhere = DeviceNumber { major: 4000, minor: 77 };
    let vm = Guarded::new(&host, "refused", Resources::new().io_read_bps(disk(), 5 * MIB).pids_limit(9));
    let (files, state) = (vm.files(), vm.state());
    let refused = |change: Resources, setting: &str, word: &str| {
        let change = change.pids_limit(5).io_read_bps(disk(), 6 * MIB).memory_reservation(MIB);
        let error = vm.change(&change).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::Kernel, Some(setting)), "{error}");
        assert!(error.path().is_some(), "{error}");
        // What systemd wrote is read back: nobody says why it is not there.
        let read_back = by_systemd() && error.errno().is_none();
        assert!(read_back || error.to_string().contains(word) && error.errno().is_some(), "{error}");
        // A controller that was enabled for the change stays enabled, and brings files.
        let now = vm.files();
        let changed: Vec<_> = files.iter().filter(|(file, text)| now.get(*file) != Some(text)).collect();
        assert!(changed.is_empty(), "{changed:?} after {error}");
        assert_eq!(vm.state(), state);
    };
    refused(
        Resources::new().io_write_bps(nowhere, MIB),
        "blockIO.throttleWriteBpsDevice.4000:77",
        "no disk has these numbers",
    );
    if host.hierarchy_of(Controller::Rdma).is_some() {
        let limits = Rdma { hca_handles: Some(Limit::Value(3)), hca_objects: None };
        refused(Resources::new().rdma("rf_none0", limits), "rdma.rf_none0", "no RDMA device has this name");
    }
    if host.hierarchy_of(Controller::NetPrio).is_some() {
        refused(
            Resources::new().network_priority("rf-none", 1),
            "network.priorities.rf-none",
            "no network interface",
        );
    }
    if host.hierarchy_of(Controller::Io).unwrap().1.version == ringfence::Version::V2 {
        let slow = Resources::new().io_write_bps(disk(), 1);
        // Linux >= 6.13 accepts a rate of 1. The test asks the kernel, and restores the file.
        let file = vm.dir("io").0.join("io.max");
        let limits = std::fs::read_to_string(&file).unwrap();
        if std::fs::write(&file, format!("{} wbps=1", disk())).is_ok() {
            std::fs::write(&file, format!("{} wbps=max", disk())).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), limits);
            vm.change(&slow).unwrap();
            let held = format!("{} rbps={} wbps=1 riops=max wiops=max", disk(), 5 * MIB);
            assert_eq!(lines(&vm, Controller::Io, "io.max"), [held]);
            assert_eq!(vm.diff().unwrap(), []);
        } else {
            let setting = format!("blockIO.throttleReadBpsDevice.{}", disk());
            refused(slow, &setting, "the least rate of v2 is 2 before Linux 6.13");
        }
    }
}

#[test]
fn a_weight_for_a_device_that_nobody_weighs_is_reported_and_refused_in_strict_mode() {
    if is_testbed() && !(module(&["bfq"]) && module(&["null_blk"])) {
        return skip("there is no BFQ or no null_blk here");
    }
    let host = Host::detect().unwrap();
    if !host.capabilities.bfq_weight {
        return skip("this kernel has no BFQ");
    }
    // A new disk of its kind, which nobody has told to use BFQ.
    let Ok(number) = std::fs::read_to_string("/sys/block/nullb0/dev") else {
        return skip("no null_blk here");
    };
    let device: DeviceNumber = number.trim().parse().unwrap();
    let setting = format!("blockIO.weightDevice.{device}.weight");
    let weight = Resources::new().io_device_weight(device, 200).pids_limit(7);
    let config = SandboxConfig::new(path("weight")).resources(weight.clone());
    let error = Guarded::refused(&host, path("weight"), |config| {
        config.resources(weight.clone()).unsupported(Unsupported::Refuse)
    });
    assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some(setting.as_str())), "{error}");
    let vm = Guarded::make(&host, &config);
    let report = vm.state().report;
    assert!(report.unsupported().any(|line| line.setting == setting), "{report}");
    assert_eq!(vm.diff().unwrap(), [], "what could not be done is told, not compared");

    std::fs::write("/sys/block/nullb0/queue/scheduler", "bfq").unwrap();
    assert!(vm.change(&weight).unwrap().is_empty());
    assert_eq!(vm.state().report.unsupported().count(), 0, "now it is done");
    assert_eq!(vm.diff().unwrap(), []);
    let file = if vm.paths().contains_key("blkio") { "blkio.bfq.weight_device" } else { "io.bfq.weight" };
    assert!(lines(&vm, Controller::Io, file).contains(&format!("{device} 200")));
    std::fs::write("/sys/block/nullb0/queue/scheduler", "none").unwrap();
}

/// Reads or writes so many MiB of a disk past the page cache, in a sandbox; how many seconds that took.
fn transfer(vm: &Sandbox, node: &str, mib: u64, write: bool) -> f64 {
    let (from, to, flag) = match write {
        false => (node, "/dev/null", "iflag=direct"),
        true => ("/dev/zero", node, "oflag=direct"),
    };
    let count = format!("count={}", mib * 16);
    let command = Command::new("dd")
        .args([&format!("if={from}"), &format!("of={to}"), "bs=64k", &count, flag, "status=none"])
        .stdin(null().unwrap());
    let start = Instant::now();
    let status = vm.spawn(&command).unwrap().wait().unwrap();
    assert!(status.success(), "dd: {status}");
    start.elapsed().as_secs_f64()
}

#[test]
fn real_input_and_output_is_slowed_as_asked_and_counted() {
    let host = Host::detect().unwrap();
    // A disk of the test's own, or else the machine's, which is only read.
    let own = is_testbed() && module(&["null_blk"]);
    let disk = if own { "nullb0" } else { "vda" };
    let node = format!("/dev/{disk}");
    let Ok(number) = std::fs::read_to_string(format!("/sys/block/{disk}/dev")) else {
        return skip("this machine has no disk that this test knows");
    };
    if let Err(error) = std::fs::File::open(&node) {
        return skip(&format!("the disk of this machine cannot be read: {error}"));
    }
    let device: DeviceNumber = number.trim().parse().unwrap();
    let access: Access = if own { "rw" } else { "r" }.parse().unwrap();
    let rule = DeviceRule::allow(DeviceKind::Block, Some(device.major), Some(device.minor), access);
    // So fast that it is no throttle: v1 counts only where there is one.
    let resources = Resources::new().device(rule).io_read_bps(device, 1 << 40).io_write_bps(device, 1 << 40);
    let vm = Guarded::new(&host, "throttled", resources);
    let mut stats = vm.stats_reader().unwrap();
    let mut counted = |write: bool| {
        let sample = stats.sample().unwrap().io.get(&device).copied().unwrap_or_default();
        if write { sample.write_bytes } else { sample.read_bytes }.unwrap_or(0)
    };
    for write in [false, true].into_iter().filter(|write| own || !write) {
        let rate = |rate| match write {
            false => Resources::new().io_read_bps(device, rate),
            true => Resources::new().io_write_bps(device, rate),
        };
        // 2 MiB at 1 MiB/s; the first slice may be free. On a machine that is busy meanwhile, what is free may be slow.
        let is_slowed = (0..3).any(|_| {
            let before = counted(write);
            vm.change(&rate(Limit::Value(1 << 40))).unwrap();
            let free = transfer(&vm, &node, 2, write);
            vm.change(&rate(Limit::Value(MIB))).unwrap();
            let slowed = transfer(&vm, &node, 2, write);
            assert!(slowed > 1.0, "write {write}: {free:.2} s free, {slowed:.2} s slowed");
            let bytes = counted(write) - before;
            assert!((4 * MIB..5 * MIB).contains(&bytes), "write {write}: {bytes} bytes counted");
            slowed > 2.0 * free
        });
        assert!(is_slowed, "write {write}");
        vm.change(&rate(Limit::Value(1 << 40))).unwrap();
    }
}

#[test]
fn the_burst_follows_the_quota_from_every_one_to_every_other() {
    let host = Host::detect().unwrap();
    let _in_force = Guarded::with_a_quota(&host);
    let vm = Guarded::new(&host, "follows", Resources::new());
    let burst = || vm.file("cpu", "cpu.cfs_burst_us", "cpu.max.burst");
    if burst().is_none() {
        return skip("this kernel has no CPU burst");
    }
    let quotas = [Limit::Max, Limit::Value(1_000), Limit::Value(50_000), Limit::Value(150_000)];
    for from in quotas {
        for to in quotas {
            for quota in [from, to] {
                vm.change(&Resources::new().cpu_quota(quota))
                    .unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
                let expected = if let Limit::Value(quota) = quota { quota } else { 0 };
                assert_eq!(burst().unwrap(), expected.to_string(), "{from:?} to {to:?}");
                assert_eq!(vm.state().resources.cpu.burst, None, "nobody asked for it");
                assert_eq!(vm.diff().unwrap(), []);
            }
        }
    }
    // Whoever says something about bursts is obeyed from then on.
    vm.change(&Resources::new().cpu_burst(0)).unwrap();
    vm.change(&Resources::new().cpu_quota(70_000)).unwrap();
    assert_eq!(burst().unwrap(), "0");
    let plain = SandboxConfig::new(path("plain")).profile(ringfence::Profile::None);
    let plain = Guarded::make(&host, &plain.resources(Resources::new().cpu_quota(50_000)));
    assert_eq!(plain.file("cpu", "cpu.cfs_burst_us", "cpu.max.burst").unwrap(), "0");
}

#[test]
fn a_difference_is_found_by_file_and_sets_and_sizes_are_compared_as_such() {
    let host = Host::detect().unwrap();
    let cpus = host.cpus.clone();
    let resources = Resources::new()
        .memory_limit(64 * MIB + 1)
        .pids_limit(9)
        .cpuset_cpus(cpus.clone())
        .cpu_shares(512)
        .io_read_bps(disk(), MIB);
    let vm = Guarded::new(&host, "diff", resources);
    assert_eq!(vm.diff().unwrap(), []);
    let write = |controller: &str, v1: &str, v2: &str, value: &str| -> String {
        let (dir, is_v1) = vm.dir(controller);
        let file = if is_v1 { v1 } else { v2 };
        std::fs::write(dir.join(file), value).unwrap();
        file.to_owned()
    };
    // The same set in other words is no difference.
    let words = cpus.iter().map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",");
    write("cpuset", "cpuset.cpus", "cpuset.cpus", &words);
    assert_eq!(vm.diff().unwrap(), []);

    let memory = write("memory", "memory.limit_in_bytes", "memory.max", "128M");
    let pids = write("pids", "pids.max", "pids.max", "max");
    let disk = disk();
    let (v1, v2) = (format!("{disk} 0"), format!("{disk} rbps=max"));
    let (_, io_is_v1) = vm.dir("blkio");
    let io = write("blkio", "blkio.throttle.read_bps_device", "io.max", if io_is_v1 { &v1 } else { &v2 });
    let found: Vec<_> =
        vm.diff().unwrap().into_iter().map(|found| (found.key, found.want, found.have)).collect();
    let line = if io_is_v1 {
        format!("{disk} {MIB}")
    } else {
        format!("{disk} rbps={MIB} riops=max wbps=max wiops=max")
    };
    let expected = BTreeSet::from([
        (memory, (64 * MIB + u64::from(vm.is_on_v1("memory"))).to_string(), Some((128 * MIB).to_string())),
        (pids, "9".to_owned(), Some("max".to_owned())),
        (io, line, None),
    ]);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);

    // What it may open, too: the state of another sandbox wants other devices.
    let mut state = vm.state();
    let kmsg = DeviceRule::allow(DeviceKind::Char, Some(1), Some(11), "r".parse().unwrap());
    let wanted = [state.devices.to_rules(), vec![kmsg]].concat();
    state.devices = ringfence::DevicePolicy::from_rules(&wanted).unwrap().0;
    let other = Sandbox::restore(&host, state).unwrap();
    let devices =
        |vm: &Sandbox| vm.diff().unwrap().into_iter().filter(|found| found.key == "devices").count();
    assert_eq!((devices(&vm), devices(&other)), (0, 1));
    vm.destroy(ringfence::Remaining::Kill, support::SOON).unwrap();
    assert_eq!(vm.diff().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn files_of_v2_that_oci_has_no_field_for_are_written_by_their_names() {
    let host = Host::detect().unwrap();
    if host.mode != Mode::V2 {
        return skip("unified settings need cgroup v2");
    }
    let vm = Guarded::new(&host, "unified", Resources::new().memory_limit(64 * MIB));
    let latency = format!("{} target=5000", disk());
    let mut written = 0;
    for (file, value, held) in [
        ("memory.high", "48M", "50331648"),
        ("memory.low", "4096", "4096"),
        ("memory.min", "8192", "8192"),
        ("memory.oom.group", "1", "1"),
        ("memory.swap.high", "16M", "16777216"),
        ("memory.zswap.max", "0", "0"),
        ("cpu.weight.nice", "5", "5"),
        ("cpuset.cpus", "0", "0"),
        ("pids.max", "17", "17"),
        ("hugetlb.2MB.rsvd.max", "4M", "4194304"),
        ("io.latency", &latency, &latency),
    ] {
        let change = Resources::new().unified(file, value);
        let optional = matches!(file, "io.latency" | "memory.zswap.max");
        match vm.change(&change) {
            Err(error) if optional && error.message().contains("no such file") => {
                assert_eq!(error.setting(), Some(format!("unified.{file}").as_str()));
                skip(&format!("this kernel has no {file}"));
                continue;
            }
            done => drop(done.unwrap_or_else(|error| panic!("{file}: {error}"))),
        }
        let controller = Controller::from_v2(file.split('.').next().unwrap()).unwrap();
        assert!(lines(&vm, controller, file).contains(&held.to_owned()), "{file}");
        assert_eq!(vm.diff().unwrap(), [], "{file}");
        written += 1;
    }
    assert!(written >= 9, "{written}");
    // What stands in the root alone, what nothing is registered for, and what is no value.
    for (file, value, word) in [
        ("io.cost.qos", "8:0 enable=1", "no such file for cgroups below the root"),
        ("misc.max", "rf_none 5", "does not take this"),
        ("memory.high", "x", "takes bytes"),
        ("memory.oom.group", "2", "takes 0 or 1"),
    ] {
        if file == "misc.max" && host.hierarchy_of(Controller::Misc).is_none() {
            skip("this kernel has no misc controller");
            continue;
        }
        let before = vm.files();
        let error = vm.change(&Resources::new().unified(file, value).pids_limit(3)).unwrap_err();
        assert_eq!((error.setting(), error.value()), (Some(format!("unified.{file}").as_str()), Some(value)));
        assert!(error.message().contains(word), "{error}");
        let now = vm.files();
        assert!(before.iter().all(|(file, text)| now.get(file) == Some(text)), "{error}");
    }
}

#[test]
fn rdma_resources_are_limited_device_by_device() {
    let host = Host::detect().unwrap();
    let device = std::fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten().next();
    let Some(device) = device.map(|device| device.file_name().into_string().unwrap()) else {
        return skip("this machine has no RDMA device");
    };
    let limits = |handles, objects| Rdma { hca_handles: handles, hca_objects: objects };
    let resources = Resources::new().rdma(&device, limits(Some(Limit::Value(3)), Some(Limit::Value(1000))));
    let vm = Guarded::new(&host, "rdma", resources);
    let file = || lines(&vm, Controller::Rdma, "rdma.max");
    assert_eq!(file(), [format!("{device} hca_handle=3 hca_object=1000")]);
    vm.change(&Resources::new().rdma(&device, limits(Some(Limit::Max), None))).unwrap();
    assert_eq!(file(), [format!("{device} hca_handle=max hca_object=1000")]);
    assert_eq!(vm.diff().unwrap(), []);
    let sample = vm.stats_reader().unwrap().sample().unwrap().clone();
    let rdma = sample.rdma.get(&device).unwrap();
    assert_eq!((rdma.handles_limit, rdma.objects_limit), (Some(Limit::Max), Some(Limit::Value(1000))));
    // A refused change after it is taken back.
    let change = Resources::new().rdma(&device, limits(Some(Limit::Value(5)), None));
    vm.change(&change.rdma("zz_none0", limits(Some(Limit::Max), None))).unwrap_err();
    assert_eq!(file(), [format!("{device} hca_handle=max hca_object=1000")]);
}
