//! What is planned for a process without privileges, and for the owner to whom a new cgroup is given.

use super::*;
use crate::Delegation;

/// On v2 at `path`, without the memory controller.
fn delegated(path: &str) -> Host {
    let withheld = vec![Controller::Memory];
    let delegation = Delegation { path: path.to_owned(), hierarchies: vec![0], withheld };
    let mut host = v2();
    (host.rootless, host.delegation) = (true, Some(delegation));
    host.hierarchies[0].controllers.retain(|controller| *controller != Controller::Memory);
    host
}

fn at(host: &Host, path: &str, resources: &Resources, evacuate: bool) -> Plan {
    let nothing = Resources::default();
    let owner = Some(Owner { uid: 7, gid: 8 });
    let want = Want { create: true, evacuate, owner, ..Want::change(path, &nothing, resources) };
    plan(host, &want, UNREAD).unwrap()
}

#[test]
fn directories_are_made_and_controllers_enabled_only_below_what_is_delegated() {
    let resources = Resources::new().memory_limit(64 * MIB).pids_limit(5);
    let plan = at(&delegated("user/a"), "user/a/ringfence/x", &resources, true);
    let printed: Vec<_> = plan.to_string().lines().map(str::to_owned).collect();
    assert_eq!(
        printed,
        [
            "enable_controllers  /sys/fs/cgroup/user/a/cgroup.subtree_control <- +pids",
            "make_dir            /sys/fs/cgroup/user/a/ringfence",
            "enable_controllers  /sys/fs/cgroup/user/a/ringfence/cgroup.subtree_control <- +pids",
            "make_dir            /sys/fs/cgroup/user/a/ringfence/x",
            "write               /sys/fs/cgroup/user/a/ringfence/x/pids.max <- 5",
            "delegate            /sys/fs/cgroup/user/a/ringfence/x to 7:8",
            "report              memory.limit = 67108864: the memory controller is not delegated to this user",
        ]
    );
    // Processes are moved away from where the controllers come from, and from nowhere else.
    let evacuated = plan.steps.iter().filter_map(|step| match &step.action {
        Action::EnableControllers { dir, evacuate, .. } => Some((&*dir.path, *evacuate)),
        _ => None,
    });
    assert_eq!(evacuated.collect::<Vec<_>>(), [("user/a", true), ("user/a/ringfence", false)]);
}

#[test]
fn without_a_cgroup_nothing_is_done_and_all_of_it_is_reported() {
    for mut host in [v1(), v2(), Host::standard(Mode::Hybrid, true)] {
        host.rootless = true;
        let resources = Resources::new().memory_limit(64 * MIB).pids_limit(5).cpu_quota(1000);
        let mut resources = resources.cpuset_cpus("0".parse().unwrap());
        resources.hugepage_limits.insert("2MB".parse().unwrap(), Limit::Value(0));
        if host.mode != Mode::V1 {
            resources.unified.insert("memory.high".to_owned(), "1".to_owned());
        }
        let plan = at(&host, "", &resources, false);
        assert_eq!(plan.steps.len(), 0, "{plan}");
        let mut settings: Vec<_> = plan.report().lines().iter().map(|line| line.setting.as_ref()).collect();
        assert!(plan.report().lines().iter().all(|line| line.why == "no cgroup is delegated to this user"));
        settings.retain(|setting| *setting != "unified.memory.high");
        settings.sort_unstable();
        let expected = ["cpu.cpus", "cpu.quota", "hugepageLimits.2MB", "memory.limit", "owner", "pids.limit"];
        assert_eq!(settings, expected, "{:?}", host.mode);
    }
}

#[test]
fn in_hierarchies_that_are_not_delegated_there_is_no_directory() {
    let memory = v1().hierarchy_of(Controller::Memory).unwrap().0;
    let delegation = Delegation { path: "a".to_owned(), hierarchies: vec![memory], withheld: Vec::new() };
    let mut host = v1();
    (host.rootless, host.delegation) = (true, Some(delegation));
    let resources = Resources::new().memory_limit(64 * MIB).pids_limit(5);
    let plan = at(&host, "a/x", &resources, false);
    let printed = plan.to_string();
    assert!(
        printed
            .lines()
            .filter(|line| line.starts_with("make_dir"))
            .eq(["make_dir            /sys/fs/cgroup/memory/a/x"])
    );
    assert!(printed.contains("memory.limit_in_bytes <- 67108864"), "{printed}");
    assert!(printed.contains("pids.limit = 5: the pids controller is not delegated"), "{printed}");
    // The kernel says what is possible elsewhere.
    let elsewhere = at(&host, "b/x", &resources, false).to_string();
    assert!(elsewhere.contains("/sys/fs/cgroup/pids/b/x/pids.max <- 5"), "{elsewhere}");
}
