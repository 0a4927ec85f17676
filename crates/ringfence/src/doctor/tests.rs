use super::*;
use crate::host::{Capabilities, Mode, Version};

/// A host with nothing to be said about.
fn ready(mode: Mode) -> Facts {
    let host = Host::standard(mode, true);
    let all = ["nsdelegate", "favordynmods", "memory_recursiveprot"].map(str::to_owned);
    let base = host.unified().map(|(_, unified)| Base {
        directory: unified.root.clone(),
        is_top: true,
        is_delegated: false,
        controllers: unified.controllers.clone(),
        enabled: vec![Controller::Cpu],
        has_processes: true,
        dying: 3,
        descendants: 40,
        ceilings: Vec::new(),
    });
    Facts {
        read_only: Vec::new(),
        refused: Vec::new(),
        base,
        mount_options: all.to_vec(),
        mount_features: all.to_vec(),
        release: "6.12.1-amd64".to_owned(),
        parameters: "quiet console=ttyS0".to_owned(),
        pressure: Pressure::Works,
        swap_is_on: true,
        huge_pages: host.huge_page_sizes.iter().map(|size| (*size, 8, 6)).collect(),
        locked_memory: Some(8 << 20),
        kvm: Hypervisor::Works,
        mshv: Hypervisor::Missing,
        nodes: ["/dev/vhost-net", "/dev/vhost-vsock", "/dev/net/tun", "/dev/vfio/vfio"]
            .map(|path| (path, Node::Usable))
            .to_vec(),
        iommu_groups: 12,
        process_1: Some("systemd".to_owned()),
        systemd_version: Some(257),
        bus: Bus { socket: "/run/dbus/system_bus_socket".into(), failure: None },
        user: User { id: 0, name: Some("root".to_owned()), lingers: false },
        host: Ok(host),
    }
}

/// What is found by one check after a change.
#[track_caller]
fn after(mode: Mode, change: impl FnOnce(&mut Facts), check: &str) -> (Verdict, String, String) {
    let mut facts = ready(mode);
    change(&mut facts);
    let found = facts.findings().into_iter().find(|finding| finding.check == check);
    let found = found.unwrap_or_else(|| panic!("no {check}"));
    assert_eq!(found.ok, found.verdict <= Verdict::Note);
    // Whatever is not well comes with a way out.
    assert!(found.advice.is_some() || found.verdict == Verdict::Good, "{found:?}");
    (found.verdict, found.found, found.advice.unwrap_or_default())
}

/// That a change is found, as (verdict, part of what is found, part of what to do).
#[track_caller]
fn finds(mode: Mode, check: &str, change: impl FnOnce(&mut Facts), expected: (Verdict, &str, &str)) {
    let (verdict, found, advice) = after(mode, change, check);
    let fits = found.contains(expected.1) && advice.contains(expected.2);
    assert!(verdict == expected.0 && fits, "{check}: {verdict:?} {found:?} {advice:?}, not {expected:?}");
}

fn host(facts: &mut Facts) -> &mut Host {
    facts.host.as_mut().unwrap()
}

fn can(facts: &mut Facts) -> &mut Capabilities {
    &mut host(facts).capabilities
}

fn base(facts: &mut Facts) -> &mut Base {
    facts.base.as_mut().unwrap()
}

fn without(facts: &mut Facts, controllers: &[Controller]) {
    for hierarchy in &mut host(facts).hierarchies {
        hierarchy.controllers.retain(|controller| !controllers.contains(controller));
    }
}

fn rootless(facts: &mut Facts) {
    host(facts).rootless = true;
    facts.user = User { id: 1000, name: Some("ann".to_owned()), lingers: true };
    facts.bus.socket = "/run/user/1000/bus".into();
}

fn delegated(facts: &mut Facts) {
    rootless(facts);
    let base = base(facts);
    base.is_delegated = true;
    base.is_top = false;
    base.has_processes = false;
    base.directory = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service".into();
}

use Verdict::{Good, Limited, Note, Unusable};

#[test]
fn a_host_that_is_ready_has_nothing_to_do() {
    let findings = ready(Mode::V2).findings();
    let bad: Vec<_> = findings.iter().filter(|finding| finding.verdict != Good).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let mut checks: Vec<_> = findings.iter().map(|finding| finding.check).collect();
    checks.sort_unstable();
    checks.dedup();
    assert_eq!(checks.len(), findings.len(), "a check has one finding");
}

#[test]
fn a_finding_is_an_object_with_the_keys_of_the_contract() {
    let good = serde_json::to_value(Finding::good("pressure", "works")).unwrap();
    let expected = serde_json::json!({"check": "pressure", "ok": true, "verdict": "good", "found": "works"});
    assert_eq!(good, expected);
    let bad = serde_json::to_value(Finding::unusable("cgroups", "none").advise("mount them")).unwrap();
    assert_eq!((&bad["ok"], &bad["do"]), (&false.into(), &"mount them".into()));
}

#[test]
fn without_cgroups_the_rest_is_told_all_the_same() {
    let none = |facts: &mut Facts| {
        facts.host = Err("no cgroup controllers are mounted here".to_owned());
        facts.base = None;
    };
    finds(
        Mode::V2,
        "cgroups",
        none,
        (Unusable, "no cgroup controllers", "mount -t cgroup2 none /sys/fs/cgroup"),
    );
    finds(Mode::V2, "virtualization", none, (Good, "KVM_CREATE_VM", ""));
}

#[test]
fn the_mode_is_named_with_the_places() {
    finds(Mode::V2, "cgroups", |_| {}, (Good, "v2 at /sys/fs/cgroup", ""));
    let upgrade = "systemd.unified_cgroup_hierarchy=1";
    finds(Mode::V1, "cgroups", |_| {}, (Note, "v1 at /sys/fs/cgroup/{cpu,cpuacct,", upgrade));
    finds(Mode::Hybrid, "cgroups", |_| {}, (Note, "hybrid: v2 at /sys/fs/cgroup/unified, v1 at", upgrade));
    let plain = |facts: &mut Facts| host(facts).systemd = false;
    finds(Mode::V1, "cgroups", plain, (Note, "v1", "mount -t cgroup2"));
    let inside = |facts: &mut Facts| host(facts).namespaced = true;
    finds(Mode::V2, "cgroups", inside, (Good, "namespace", ""));
}

#[test]
fn what_cannot_be_written_to_makes_it_unusable() {
    let at = PathBuf::from("/sys/fs/cgroup");
    let read_only = |facts: &mut Facts| facts.read_only = vec![at.clone()];
    finds(
        Mode::V2,
        "writable",
        read_only,
        (Unusable, "read-only: /sys/fs/cgroup", "mount -o remount,bind,rw /sys/fs/cgroup ("),
    );
    let refused = |facts: &mut Facts| facts.refused = vec![at.clone()];
    finds(Mode::V2, "writable", refused, (Unusable, "may not be made in /sys/fs/cgroup", "CAP_DAC_OVERRIDE"));
}

#[test]
fn missing_controllers_are_named_with_the_way_to_them() {
    use Controller::{Cpuset, Devices, Hugetlb, Memory, Pids};
    let lack = |lacking: &'static [Controller]| move |facts: &mut Facts| without(facts, lacking);
    finds(
        Mode::V2,
        "controllers",
        lack(&[Pids]),
        (Limited, "; pids missing", "a kernel with the pids controller"),
    );
    finds(Mode::V2, "controllers", lack(&[Hugetlb]), (Note, "; hugetlb missing", "hugetlb"));
    let mount = "mkdir /sys/fs/cgroup/cpuset && mount -t cgroup -o cpuset cpuset /sys/fs/cgroup/cpuset";
    finds(Mode::V1, "controllers", lack(&[Cpuset]), (Limited, "cpuset missing", mount));
    finds(Mode::V1, "controllers", lack(&[Devices]), (Limited, "devices missing", "-o devices"));
    finds(Mode::Hybrid, "controllers", lack(&[Devices]), (Good, "memory", ""));
    let disabled = |facts: &mut Facts| {
        without(facts, &[Memory]);
        facts.parameters = "quiet cgroup_disable=memory".to_owned();
    };
    finds(Mode::V2, "controllers", disabled, (Limited, "memory missing", "cgroup_enable=memory"));
    let inside = |facts: &mut Facts| {
        without(facts, &[Cpuset]);
        base(facts).is_top = false;
    };
    finds(Mode::V2, "controllers", inside, (Limited, "cpuset", "echo +cpuset > cgroup.subtree_control"));
}

#[test]
fn processes_beside_children_keep_controllers_from_being_enabled() {
    finds(Mode::V2, "enabled-controllers", |_| {}, (Good, "cpu below /sys/fs/cgroup; cpuset", ""));
    let container = |facts: &mut Facts| base(facts).is_top = false;
    finds(Mode::V2, "enabled-controllers", container, (Limited, "cannot be", "cgroup.procs"));
    let empty = |facts: &mut Facts| {
        base(facts).is_top = false;
        base(facts).has_processes = false;
    };
    finds(Mode::V2, "enabled-controllers", empty, (Good, "when needed", ""));
}

#[test]
fn an_unprivileged_caller_is_told_what_is_delegated() {
    finds(Mode::V2, "delegation", delegated, (Good, "user@1000.service: cpu cpuset memory io pids", ""));
    let less = |facts: &mut Facts| {
        delegated(facts);
        base(facts).controllers.retain(|controller| *controller != Controller::Cpuset);
    };
    finds(Mode::V2, "delegation", less, (Limited, "cpuset withheld", "Delegate=cpu cpuset memory io pids"));
    finds(Mode::V2, "delegation", rootless, (Limited, "no cgroup is delegated to ann", "-p Delegate=yes"));
    finds(Mode::V1, "delegation", rootless, (Limited, "no limits", "run as root, or boot with"));
    let plain = |facts: &mut Facts| {
        rootless(facts);
        host(facts).systemd = false;
    };
    finds(Mode::V2, "delegation", plain, (Limited, "no cgroup", "/sys/kernel/cgroup/delegate"));
    assert!(
        ready(Mode::V2).findings().iter().all(|finding| finding.check != "delegation"),
        "root needs none"
    );
}

#[test]
fn mount_options_that_the_kernel_knows_are_advised() {
    let only = |options: &'static [&'static str]| {
        move |facts: &mut Facts| {
            facts.mount_options = options.iter().map(|option| (*option).to_owned()).collect()
        }
    };
    let both = "mount -o remount,nsdelegate,memory_recursiveprot /sys/fs/cgroup: ";
    finds(
        Mode::V2,
        "mount-options",
        only(&[]),
        (Note, "none; without nsdelegate and memory_recursiveprot", both),
    );
    let hybrid = "remount,nsdelegate /sys/fs/cgroup/unified: ";
    finds(Mode::Hybrid, "mount-options", only(&[]), (Note, "without nsdelegate", hybrid));
    let usual = &["nsdelegate", "memory_recursiveprot"];
    finds(
        Mode::V2,
        "mount-options",
        only(usual),
        (Good, "nsdelegate", "remount,favordynmods /sys/fs/cgroup"),
    );
    let old = |facts: &mut Facts| {
        only(usual)(facts);
        facts.mount_features.retain(|feature| feature != "favordynmods");
    };
    assert_eq!(after(Mode::V2, old, "mount-options").2, "");
}

#[test]
fn limits_on_the_number_and_depth_of_cgroups_are_held_against_what_is_used() {
    let with = |max_descendants, descendants, max_depth, levels| {
        move |facts: &mut Facts| {
            base(facts).ceilings = vec![Ceiling {
                directory: "/sys/fs/cgroup/a".into(),
                max_descendants,
                descendants,
                max_depth,
                levels,
            }];
        }
    };
    finds(Mode::V2, "cgroup-limits", |_| {}, (Good, "none; 40 cgroups", ""));
    finds(
        Mode::V2,
        "cgroup-limits",
        with(Some(100), 89, None, 0),
        (Good, "89 of 100 cgroups below /sys/fs/cgroup/a", ""),
    );
    let raise = "echo max > /sys/fs/cgroup/a/cgroup.max.descendants";
    finds(Mode::V2, "cgroup-limits", with(Some(100), 90, None, 0), (Limited, "90 of 100", raise));
    finds(Mode::V2, "cgroup-limits", with(Some(0), 0, None, 0), (Limited, "0 of 0", raise));
    finds(Mode::V2, "cgroup-limits", with(None, 9, Some(6), 2), (Good, "2 of 6 levels", ""));
    finds(
        Mode::V2,
        "cgroup-limits",
        with(None, 9, Some(5), 2),
        (Limited, "needs up to 4", "cgroup.max.depth"),
    );
    finds(
        Mode::V2,
        "cgroup-limits",
        with(Some(u64::MAX), u64::MAX, Some(0), u64::MAX),
        (Limited, "of", "echo max"),
    );
}

#[test]
fn removed_cgroups_that_stay_are_told_when_they_are_many() {
    let many = |facts: &mut Facts| base(facts).dying = 1000;
    finds(Mode::V2, "dying-cgroups", many, (Limited, "1000 that were removed", "/proc/sys/vm/drop_caches"));
    finds(Mode::V2, "dying-cgroups", |_| {}, (Good, "40 cgroups, and 3", ""));
}

#[test]
fn device_filters_need_a_program_only_where_v1_has_no_list() {
    let refused = |facts: &mut Facts| can(facts).bpf_devices = false;
    finds(Mode::V1, "devices", refused, (Good, "devices.allow", ""));
    finds(Mode::V2, "devices", refused, (Limited, "cannot be denied", "CAP_SYS_ADMIN"));
    let user = |facts: &mut Facts| {
        rootless(facts);
        refused(facts);
    };
    finds(Mode::V2, "devices", user, (Limited, "eBPF", "CAP_BPF and CAP_NET_ADMIN"));
    let inside = |facts: &mut Facts| {
        refused(facts);
        host(facts).rootless = true;
    };
    finds(Mode::V2, "devices", inside, (Limited, "eBPF", "root of the machine"));
    finds(Mode::V1, "devices", rootless, (Limited, "only root", "run as root"));
    let old = |facts: &mut Facts| can(facts).bpf_replace = false;
    finds(Mode::V2, "devices", old, (Note, "beside", "Linux 5.6"));
}

#[test]
fn locked_memory_matters_before_linux_5_11() {
    let with = |release: &'static str, limit| {
        move |facts: &mut Facts| {
            facts.release = release.to_owned();
            facts.locked_memory = limit;
        }
    };
    finds(
        Mode::V2,
        "memlock",
        with("5.10.0-30-amd64", Some(64 << 10)),
        (Limited, "64 KiB", "ulimit -l unlimited"),
    );
    finds(Mode::V2, "memlock", with("5.10.0-30-amd64", None), (Good, "unlimited", ""));
    finds(Mode::V2, "memlock", with("5.11", Some(64 << 10)), (Good, "no limit for eBPF", ""));
    finds(Mode::V1, "memlock", with("5.10.0", Some(64 << 10)), (Good, "64 KiB", ""));
    let both = |facts: &mut Facts| {
        with("5.10.0", Some(64 << 10))(facts);
        can(facts).bpf_devices = false;
    };
    finds(Mode::V2, "devices", both, (Limited, "eBPF", "LimitMEMLOCK=infinity"));
}

#[test]
fn an_older_kernel_is_told_what_it_lacks() {
    let old = |facts: &mut Facts| {
        facts.release = "5.10.0-30-amd64".to_owned();
        (can(facts).cgroup_kill, can(facts).memory_peak) = (false, false);
    };
    finds(Mode::V2, "kernel", old, (Note, "without cgroup.kill, memory.peak", "Linux 5.19 or newer"));
    let filtered = |facts: &mut Facts| can(facts).clone_into_cgroup = false;
    finds(Mode::V2, "kernel", filtered, (Note, "without clone3 into a cgroup", "seccomp"));
    let ancient = |facts: &mut Facts| facts.release = "3.10.0-1160.el7".to_owned();
    finds(Mode::V1, "kernel", ancient, (Limited, "3.10", "5.10 or newer"));
    for odd in ["", "x", "6", "6.x"] {
        after(Mode::V2, |facts| facts.release = odd.to_owned(), "kernel");
    }
}

#[test]
fn pressure_says_how_it_is_switched_on() {
    let is = |pressure| move |facts: &mut Facts| facts.pressure = pressure;
    finds(Mode::V2, "pressure", is(Pressure::Off), (Limited, "switched off", "boot with psi=1"));
    finds(Mode::V2, "pressure", is(Pressure::Missing), (Limited, "no /proc/pressure", "CONFIG_PSI"));
    let off = |facts: &mut Facts| {
        facts.pressure = Pressure::Missing;
        facts.parameters = "psi=0 quiet".to_owned();
    };
    finds(Mode::V2, "pressure", off, (Limited, "psi=0", "boot without psi=0"));
    finds(Mode::V1, "pressure", |_| {}, (Note, "as a whole", "cgroup2"));
}

#[test]
fn swap_that_is_not_counted_matters_where_there_is_some() {
    let uncounted = |on| {
        move |facts: &mut Facts| {
            can(facts).swap = false;
            facts.swap_is_on = on;
        }
    };
    finds(Mode::V1, "swap", uncounted(true), (Limited, "cannot be limited", "swapaccount=1"));
    finds(Mode::V1, "swap", uncounted(false), (Note, "could not", "swapaccount=1"));
    let disabled = |facts: &mut Facts| {
        uncounted(true)(facts);
        facts.parameters = "swapaccount=0".to_owned();
    };
    finds(Mode::V2, "swap", disabled, (Limited, "cannot", "boot without swapaccount=0"));
}

#[test]
fn a_hypervisor_is_what_makes_a_virtual_machine() {
    let is =
        |kvm: Hypervisor, mshv: Hypervisor| move |facts: &mut Facts| (facts.kvm, facts.mshv) = (kvm, mshv);
    let why = || "Permission denied".to_owned();
    for (kvm, mshv, expected) in [
        (Hypervisor::Missing, Hypervisor::Missing, (Limited, "neither", "modprobe kvm_intel")),
        (Hypervisor::Missing, Hypervisor::Opens, (Good, "/dev/mshv opens", "")),
        (Hypervisor::Missing, Hypervisor::Refused(why()), (Limited, "/dev/mshv cannot be opened", "root")),
        (
            Hypervisor::Refused(why()),
            Hypervisor::Missing,
            (Limited, "Permission denied", "usermod -aG kvm root"),
        ),
        (Hypervisor::Fails(why()), Hypervisor::Missing, (Limited, "makes no virtual machine", "nested")),
        (Hypervisor::Fails(why()), Hypervisor::Opens, (Good, "/dev/mshv opens", "")),
    ] {
        finds(Mode::V2, "virtualization", is(kvm, mshv), expected);
    }
}

#[test]
fn devices_that_serve_virtual_machines_are_notes() {
    let nodes = |node| move |facts: &mut Facts| facts.nodes.iter_mut().for_each(|(_, there)| *there = node);
    finds(Mode::V2, "vhost-net", nodes(Node::Missing), (Note, "no /dev/vhost-net", "modprobe vhost_net"));
    finds(
        Mode::V2,
        "vhost-vsock",
        nodes(Node::Missing),
        (Note, "no /dev/vhost-vsock", "modprobe vhost_vsock"),
    );
    finds(Mode::V2, "tun", nodes(Node::Refused), (Note, "not for this user", "let user root"));
    finds(Mode::V2, "vfio", nodes(Node::Missing), (Note, "12 IOMMU groups; no", "modprobe vfio-pci"));
    let none = |facts: &mut Facts| facts.iommu_groups = 0;
    finds(Mode::V2, "vfio", none, (Note, "no IOMMU groups", "intel_iommu=on"));
    let unreserved = |facts: &mut Facts| facts.huge_pages.iter_mut().for_each(|pages| pages.1 = 0);
    finds(Mode::V2, "huge-pages", unreserved, (Note, "none are reserved", "vm.nr_hugepages"));
    finds(Mode::V2, "huge-pages", |_| {}, (Good, "2MB: 6 of 8 free, 1GB: 6 of 8 free", ""));
    finds(Mode::V2, "huge-pages", |facts| facts.huge_pages.clear(), (Note, "none", "CONFIG_HUGETLBFS"));
}

#[test]
fn systemd_is_told_by_version_and_by_what_it_lacks() {
    let is = |version: Option<u32>| move |facts: &mut Facts| facts.systemd_version = version;
    finds(Mode::V2, "systemd", |_| {}, (Good, "process 1, version 257", ""));
    finds(Mode::V2, "systemd", is(Some(252)), (Good, "version 252, without MemoryZSwapMax", ""));
    finds(Mode::V2, "systemd", is(Some(239)), (Note, "AllowedCPUs", "252 or newer"));
    finds(Mode::V2, "systemd", is(None), (Good, "unknown version", ""));
    finds(Mode::V1, "systemd", |_| {}, (Note, "the last one", "unified_cgroup_hierarchy=1"));
    let plain = |facts: &mut Facts| {
        host(facts).systemd = false;
        facts.process_1 = Some("runit".to_owned());
    };
    finds(Mode::V2, "systemd", plain, (Good, "process 1 is runit: the driver is cgroupfs", ""));
    let broken = |facts: &mut Facts| facts.bus.failure = Some("Connection refused".to_owned());
    finds(Mode::V2, "system-bus", broken, (Limited, "Connection refused", "systemctl start dbus.socket"));
    let user = |facts: &mut Facts| {
        rootless(facts);
        broken(facts);
        facts.user.lingers = false;
    };
    finds(Mode::V2, "user-bus", user, (Limited, "/run/user/1000/bus", "XDG_RUNTIME_DIR=/run/user/1000"));
    finds(Mode::V2, "lingering", user, (Note, "ann", "loginctl enable-linger ann"));
}

#[test]
fn every_mode_has_its_own_hierarchies_in_the_standard_hosts() {
    for mode in [Mode::V1, Mode::Hybrid, Mode::V2] {
        let facts = ready(mode);
        let has_v2 = facts.host.as_ref().unwrap().hierarchies.iter().any(|one| one.version == Version::V2);
        let checks: Vec<_> = facts.findings().iter().map(|finding| finding.check).collect();
        assert_eq!(checks.contains(&"mount-options"), has_v2, "{mode:?}");
        assert_eq!(checks.contains(&"dying-cgroups"), has_v2, "{mode:?}");
    }
}

mod on_a_kernel {
    use super::*;

    #[test]
    fn this_machine_is_read_whole() {
        let facts = Facts::read(None);
        assert!(facts.host.is_ok() && facts.kernel_version().is_some(), "{facts:?}");
        assert!(facts.process_1.is_some() && facts.locked_memory != Some(0), "{facts:?}");
        let has_v2 = facts.host.as_ref().is_ok_and(|host| host.unified().is_some());
        assert_eq!(facts.base.is_some(), has_v2, "{facts:?}");
        assert!(facts.findings().len() > 10, "{:?}", facts.findings());
    }
}
