//! The other crates. Neither starts a process inside: the child joins by itself before it executes the program.

use cgroups_rs::CgroupPid;
use cgroups_rs::manager::{FsManager, Manager as _};
use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager as _, ControllerOpt, create_cgroup_manager,
};
use nix::unistd::Pid;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

use super::{MAJOR, MEMORY, Manager, PERIOD, PIDS, Program, QUOTA, RULES, fork_and_wait};
use crate::Result;

fn devices(minors: impl Iterator<Item = u32>) -> Result<Vec<LinuxDeviceCgroup>> {
    let rule = |minor| {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::B);
        Ok(rule.major(i64::from(MAJOR)).minor(i64::from(minor)).access("rw").build()?)
    };
    minors.map(rule).collect()
}

/// Everything is denied first, and the runtime's defaults are allowed: by the caller, as these crates leave it to them.
/// `any` is their word for every minor number.
fn base(any: Option<i64>) -> Result<Vec<LinuxDeviceCgroup>> {
    let all = LinuxDeviceCgroupBuilder::default().allow(false).typ(LinuxDeviceType::A);
    let all = match any {
        Some(any) => all.major(any).minor(any),
        None => all,
    };
    let mut rules = vec![all.access("rwm").build()?];
    for (_, major, minor) in super::bpf::DEFAULTS {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C);
        let rule = rule.major(i64::from(major)).access("rwm");
        let minor = minor.map(i64::from).or(any);
        let rule = match minor {
            Some(minor) => rule.minor(minor),
            None => rule,
        };
        rules.push(rule.build()?);
    }
    Ok(rules)
}

fn limits(devices: Vec<LinuxDeviceCgroup>) -> Result<LinuxResources> {
    Ok(LinuxResourcesBuilder::default()
        .cpu(LinuxCpuBuilder::default().quota(QUOTA as i64).period(PERIOD).build()?)
        .memory(LinuxMemoryBuilder::default().limit(MEMORY as i64).build()?)
        .pids(LinuxPidsBuilder::default().limit(PIDS as i64).build()?)
        .devices(devices)
        .build()?)
}

fn tasks(limit: u64) -> Result<LinuxResources> {
    let pids = LinuxPidsBuilder::default().limit(limit as i64).build()?;
    Ok(LinuxResourcesBuilder::default().pids(pids).devices(Vec::new()).build()?)
}

const NONE: &str = "there is no cgroup";

/// cgroups-rs, as Kata Containers uses it.
#[derive(Default)]
pub struct Kata(Option<FsManager>);

impl Manager for Kata {
    fn create(&mut self, name: &str, pid: u32) -> Result<()> {
        let mut manager = FsManager::new(name)?;
        // It makes the cgroup.
        manager.add_proc(CgroupPid::from(u64::from(pid)))?;
        // It has no device filter on v2.
        let rules = if manager.v2() { Vec::new() } else { [base(Some(-1))?, devices(0..RULES)?].concat() };
        manager.set(&limits(rules)?)?;
        self.0 = Some(manager);
        Ok(())
    }

    fn spawn(&mut self, program: &Program) -> Result<()> {
        let manager = self.0.as_mut().ok_or(NONE)?;
        fork_and_wait(program, None, || {
            manager.add_proc(CgroupPid::from(u64::from(std::process::id()))).is_ok()
        })
    }

    fn set(&mut self, pids: u64) -> Result<()> {
        Ok(self.0.as_mut().ok_or(NONE)?.set(&tasks(pids)?)?)
    }

    fn allow(&mut self, minor: u32) -> Result<()> {
        let manager = self.0.as_mut().ok_or(NONE)?;
        if manager.v2() {
            return Err("it has no device filter on v2".into());
        }
        let rule = devices([minor].into_iter())?;
        Ok(manager.set(&LinuxResourcesBuilder::default().devices(rule).build()?)?)
    }

    fn destroy(&mut self) -> Result<()> {
        Ok(self.0.take().ok_or(NONE)?.destroy()?)
    }
}

/// libcgroups, as youki uses it.
#[derive(Default)]
pub struct Youki(Option<AnyCgroupManager>);

fn apply(manager: &AnyCgroupManager, resources: &LinuxResources) -> Result<()> {
    let (disable_oom_killer, oom_score_adj, freezer_state) = (false, None, None);
    Ok(manager.apply(&ControllerOpt { resources, disable_oom_killer, oom_score_adj, freezer_state })?)
}

impl Manager for Youki {
    fn create(&mut self, name: &str, pid: u32) -> Result<()> {
        let manager = create_cgroup_manager(CgroupConfig {
            cgroup_path: format!("/{name}").into(),
            systemd_cgroup: false,
            container_name: name.to_owned(),
        })?;
        // It makes the cgroup.
        manager.add_task(Pid::from_raw(pid as i32))?;
        apply(&manager, &limits([base(None)?, devices(0..RULES)?].concat())?)?;
        self.0 = Some(manager);
        Ok(())
    }

    fn spawn(&mut self, program: &Program) -> Result<()> {
        let manager = self.0.as_ref().ok_or(NONE)?;
        fork_and_wait(program, None, || manager.add_task(Pid::from_raw(std::process::id() as i32)).is_ok())
    }

    fn set(&mut self, pids: u64) -> Result<()> {
        apply(self.0.as_ref().ok_or(NONE)?, &tasks(pids)?)
    }

    fn allow(&mut self, minor: u32) -> Result<()> {
        let manager = self.0.as_ref().ok_or(NONE)?;
        if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return Err("it is built without its device filter for v2, which needs libbpf".into());
        }
        apply(manager, &LinuxResourcesBuilder::default().devices(devices([minor].into_iter())?).build()?)
    }

    fn destroy(&mut self) -> Result<()> {
        Ok(self.0.take().ok_or(NONE)?.remove()?)
    }
}
