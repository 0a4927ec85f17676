use super::super::mountinfo::parse;
use super::*;

fn assembled(mountinfo: &str, root: Option<&str>) -> Result<(Mode, Vec<Hierarchy>)> {
    assemble(&parse(mountinfo.as_bytes()), root.map(Path::new))
}

/// `MODE ROOT=CONTROLLERS …`
fn shown(mountinfo: &str, root: Option<&str>) -> String {
    let (mode, hierarchies) = assembled(mountinfo, root).unwrap();
    let mut text = mode.as_str().to_owned();
    for hierarchy in hierarchies {
        let mut names: Vec<String> = hierarchy.controllers.iter().map(ToString::to_string).collect();
        names.extend(hierarchy.name.map(|name| format!("name={name}")));
        names.extend(hierarchy.noprefix.then(|| "noprefix".to_owned()));
        names.extend((hierarchy.version == Version::V2).then(|| "2".to_owned()));
        text += &format!(" {}={}", hierarchy.root.display(), names.join(","));
    }
    text
}

const DEBIAN_UNIFIED: &str = "\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
29 22 0:6 / /sys/kernel/security rw,nosuid,nodev,noexec,relatime shared:8 - securityfs securityfs rw
32 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
33 22 0:27 / /sys/fs/pstore rw,nosuid,nodev,noexec,relatime shared:10 - pstore pstore rw
";

const DEBIAN_HYBRID: &str = "\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
32 22 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,nr_inodes=1024,mode=755
33 32 0:27 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
34 32 0:28 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
38 32 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:16 - cgroup cgroup rw,cpu,cpuacct
39 32 0:33 / /sys/fs/cgroup/net_cls,net_prio rw,nosuid,nodev,noexec,relatime shared:17 - cgroup cgroup rw,net_cls,net_prio
40 32 0:34 / /sys/fs/cgroup/blkio rw,nosuid,nodev,noexec,relatime shared:18 - cgroup cgroup rw,blkio
41 32 0:35 / /sys/fs/cgroup/cpuset rw,nosuid,nodev,noexec,relatime shared:19 - cgroup cgroup rw,cpuset
42 32 0:36 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:20 - cgroup cgroup rw,memory
";

#[test]
fn a_cgroup2_at_the_usual_place_is_unified() {
    assert_eq!(shown(DEBIAN_UNIFIED, None), "v2 /sys/fs/cgroup=2");
    // A VPN that mounts the old net_cls beside it does not make the machine hybrid.
    let vpn = format!("{DEBIAN_UNIFIED}90 28 0:50 / /run/vpn/net_cls rw - cgroup net_cls rw,net_cls\n");
    assert_eq!(shown(&vpn, None), "v2 /sys/fs/cgroup=2");
}

#[test]
fn in_a_cgroup_namespace_the_mount_that_shows_its_root_is_used() {
    let outside = DEBIAN_UNIFIED.replace("0:26 / ", "0:26 /../.. ");
    assert_eq!(shown(&outside, None), "v2 /sys/fs/cgroup=2");
    let remounted = outside + "90 28 0:26 / /mnt rw - cgroup2 none rw\n";
    assert_eq!(shown(&remounted, None), "v2 /mnt=2");
}

#[test]
fn controllers_that_share_a_hierarchy_stay_together() {
    assert_eq!(
        shown(DEBIAN_HYBRID, None),
        "hybrid /sys/fs/cgroup/systemd=name=systemd /sys/fs/cgroup/cpu,cpuacct=cpu,cpuacct \
         /sys/fs/cgroup/net_cls,net_prio=net_cls,net_prio /sys/fs/cgroup/blkio=io /sys/fs/cgroup/cpuset=cpuset \
         /sys/fs/cgroup/memory=memory /sys/fs/cgroup/unified=2"
    );
    let legacy: String = DEBIAN_HYBRID
        .lines()
        .filter(|line| !line.contains("cgroup2"))
        .fold(String::new(), |all, line| all + line + "\n");
    assert!(shown(&legacy, None).starts_with("v1 /sys/fs/cgroup/systemd=name=systemd"));
}

#[test]
fn a_docker_container_on_version_1_sees_its_own_part() {
    let container = "\
1200 1100 0:50 / / rw,relatime master:300 - overlay overlay rw,lowerdir=/a,upperdir=/b,workdir=/c
1203 1200 0:55 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
1204 1203 0:56 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
1205 1204 0:28 /docker/0f1e /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec,relatime master:11 - cgroup cgroup rw,xattr,name=systemd
1206 1204 0:32 /docker/0f1e /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup rw,cpu,cpuacct
1207 1204 0:36 /docker/0f1e /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:20 - cgroup cgroup rw,memory
1210 1203 0:60 / /sys/firmware ro,relatime - tmpfs tmpfs ro
";
    assert_eq!(
        shown(container, None),
        "v1 /sys/fs/cgroup/systemd=name=systemd /sys/fs/cgroup/cpu,cpuacct=cpu,cpuacct /sys/fs/cgroup/memory=memory"
    );
}

#[test]
fn hierarchies_in_odd_places_are_found() {
    // WSL, and distributions of old: no tmpfs at /sys/fs/cgroup, mounts singly, some of them elsewhere.
    let odd = "\
10 1 8:32 / / rw,relatime - ext4 /dev/sdc rw
11 10 0:21 / /sys rw,nosuid - sysfs sysfs rw
12 11 0:22 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw,mode=755
13 12 0:23 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
14 10 0:24 / /cgroup/cpu\\040and\\040more rw,relatime - cgroup none rw,cpu
15 10 0:25 / /dev/cpuset rw,relatime - cgroup none rw,cpuset,noprefix,release_agent=/sbin/cpuset_release_agent
16 12 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory,clone_children
17 12 0:27 / /sys/fs/cgroup/debug rw,relatime - cgroup cgroup rw,debug
";
    assert_eq!(
        shown(odd, None),
        "hybrid /cgroup/cpu and more=cpu /dev/cpuset=cpuset,noprefix /sys/fs/cgroup/memory=memory \
         /sys/fs/cgroup/unified=2"
    );
    assert_eq!(shown("10 1 0:2 / /mnt/cgroups rw - cgroup2 none rw\n", None), "v2 /mnt/cgroups=2");
}

#[test]
fn a_hierarchy_that_is_mounted_twice_is_used_from_its_root_in_the_usual_place() {
    let base = "10 1 8:32 / / rw - ext4 /dev/sdc rw\n11 10 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n";
    for (mounts, used) in [
        ([("/", "/a"), ("/", "/b")], "/a"),
        ([("/", "/a"), ("/", "/sys/fs/cgroup/pids")], "/sys/fs/cgroup/pids"),
        ([("/x", "/sys/fs/cgroup/pids"), ("/", "/a")], "/a"),
        ([("/../..", "/sys/fs/cgroup/pids"), ("/", "/a")], "/a"),
        ([("/..", "/a"), ("/x", "/b")], "/b"),
    ] {
        for (kind, mode) in [("cgroup cgroup rw,pids", "v1"), ("cgroup2 cgroup2 rw", "v2")] {
            let mut text = base.to_owned();
            for (id, (root, point)) in (20..).zip(mounts) {
                let parent = if point.starts_with("/sys") { 11 } else { 10 };
                text += &format!("{id} {parent} 0:36 {root} {point} rw - {kind}\n");
            }
            let (found, hierarchies) = assembled(&text, None).unwrap();
            assert_eq!((found.as_str(), hierarchies.len()), (mode, 1));
            assert_eq!(hierarchies[0].root, Path::new(used), "{mounts:?}");
        }
    }
}

#[test]
fn a_mount_that_another_one_covers_is_not_used() {
    // A container engine that mounts its own tree over the host's.
    let covered = format!(
        "{DEBIAN_HYBRID}\
         60 32 0:60 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
         61 60 0:36 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    );
    assert_eq!(shown(&covered, None), "v1 /sys/fs/cgroup/memory=memory");
    let over_unified = format!("{DEBIAN_UNIFIED}60 32 0:60 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n");
    assert_eq!(assembled(&over_unified, None).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_relocated_root_takes_only_what_is_at_or_below_it() {
    let relocated = format!(
        "{DEBIAN_HYBRID}\
         70 28 0:32 / /bed/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
         71 28 0:27 / /bed/two rw - cgroup2 cgroup2 rw\n"
    );
    assert_eq!(shown(&relocated, Some("/bed")), "hybrid /bed/cpu=cpu,cpuacct /bed/two=2");
    assert_eq!(shown(&relocated, Some("/bed/cpu")), "v1 /bed/cpu=cpu,cpuacct");
    assert_eq!(shown(&relocated, Some("/bed/two")), "v2 /bed/two=2");
    assert_eq!(shown(&relocated, Some("/sys/fs/cgroup/unified/a/b")), "v2 /sys/fs/cgroup/unified/a/b=2");
    let inside = assembled(&relocated, Some("/bed/cpu/a")).unwrap_err();
    assert!(inside.to_string().contains("inside a version 1 hierarchy"), "{inside}");
    let nothing = assembled(&relocated, Some("/home")).unwrap_err();
    assert!(nothing.to_string().contains("no cgroup controllers are mounted"), "{nothing}");
}

#[test]
fn a_named_hierarchy_alone_is_no_controller() {
    let named = "10 1 0:2 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
    assert!(assembled(named, None).is_err());
    let beside = format!("{named}11 1 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    assert_eq!(shown(&beside, None), "v2 /sys/fs/cgroup/unified=2");
    assert!(assembled("", None).is_err());
}
