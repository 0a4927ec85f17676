//! Processes for a sandbox inside which controllers were enabled for children, where cgroup v2 takes none into the whole.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use crate::support::{Guarded, skip};
use ringfence::{Command, Host, Resources, Version};

testbed! {
    modes: "trixie plain-v2";
    drivers: "cgroupfs systemd";
    gate: "trixie";
}

#[test]
fn every_way_in_leads_to_the_leaf() {
    let mut host = Host::detect().unwrap();
    if host.hierarchies.iter().any(|hierarchy| hierarchy.version == Version::V1) {
        return skip("cgroup v1 takes processes into a cgroup with children");
    }
    for born_inside in [true, false] {
        host.capabilities.clone_into_cgroup &= born_inside;
        let vm = Guarded::new(&host, if born_inside { "born" } else { "joins" }, Resources::new());
        let dir = vm.paths().into_values().next().unwrap();
        fs::create_dir(dir.join("tenant")).unwrap();
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines() {
            fs::write(dir.join("tenant/cgroup.procs"), pid).unwrap();
        }
        fs::write(dir.join("cgroup.subtree_control"), "+memory").unwrap();

        let inside = || fs::read_to_string(dir.join("evacuated/cgroup.procs")).unwrap_or_default();
        let has = |pid: u32| inside().lines().any(|line| line == pid.to_string());
        let born = vm.spawn(&Command::new("sleep").args(["1000"])).unwrap();
        assert!(has(born.pid()), "{}", inside());

        let mut joined =
            std::process::Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        vm.join(joined.id()).unwrap();
        assert!(has(joined.id()), "{}", inside());

        let mut hooked = std::process::Command::new("sleep");
        let hook = vm.join_hook().unwrap();
        // SAFETY: the hook is made for this.
        unsafe { hooked.arg("1000").stdin(Stdio::null()).pre_exec(hook) };
        let mut hooked = hooked.spawn().unwrap();
        assert!(has(hooked.id()), "{}", inside());

        vm.kill(std::time::Duration::from_secs(30)).unwrap();
        born.wait().unwrap();
        joined.wait().unwrap();
        hooked.wait().unwrap();
    }
}
