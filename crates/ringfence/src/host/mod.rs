//! What there is on this machine: cgroup mode, hierarchies, what the kernel can do, devices.
//!
//! A [`Host`] is a value: the planner is given one and asks the kernel nothing. It comes from [`Host::detect`], from
//! the JSON of another machine, or from [`Host::standard`].

mod controller;
pub(crate) mod delegation;
mod detect;
mod devices;
mod hierarchies;
mod manager;
mod mountinfo;
mod probe;
mod roots;
mod standard;
mod topology;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use detect::is_read_only;
pub(crate) use manager::{SharedManager, runtime_directory};
pub(crate) use roots::Roots;
pub(crate) use topology::Topology;

#[cfg(fuzzing)]
pub(crate) use {devices::device_mapper_major, hierarchies::of_mountinfo};

pub use controller::Controller;
pub use delegation::Delegation;

use crate::devices::DeviceKind;
use crate::document::check_length;
use crate::path::Subpath;
use crate::resources::{CpuSet, HugePageSize};
use crate::{Error, Result};

/// The host's cgroup mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Version 1 alone.
    V1,
    /// Version 1 controllers with a version 2 tree beside them.
    Hybrid,
    /// Version 2 alone ("unified").
    V2,
}

/// The version of one hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A version 1 hierarchy.
    V1,
    /// The version 2 tree.
    V2,
}

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// v1 or v2.
    pub version: Version,
    /// The directory of its root cgroup, as far as this process sees it.
    pub root: PathBuf,
    /// The controllers that it offers. v2: those of `cgroup.controllers` in its root.
    pub controllers: Vec<Controller>,
    /// The name of a v1 hierarchy without controllers (`systemd` for `name=systemd`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A cpuset mounted with `noprefix` has `cpus` where others have `cpuset.cpus`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noprefix: bool,
}

/// What this kernel can do, each probed, not concluded from its version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Capabilities {
    /// `cgroup.kill` (Linux 5.14).
    pub cgroup_kill: bool,
    /// Pressure stall information (`cpu.pressure`, …).
    pub psi: bool,
    /// `memory.peak` (Linux 5.19; v1's `memory.max_usage_in_bytes` is older than all that is supported).
    pub memory_peak: bool,
    /// Swap accounting: `memory.swap.max` or `memory.memsw.limit_in_bytes`.
    pub swap: bool,
    /// `cpu.max.burst` or `cpu.cfs_burst_us` (Linux 5.14).
    pub cpu_burst: bool,
    /// `cpu.idle` (Linux 5.15).
    pub cpu_idle: bool,
    /// CFS bandwidth control: `cpu.max` or `cpu.cfs_quota_us`.
    pub cpu_quota: bool,
    /// Real-time group scheduling: `cpu.rt_runtime_us` (v1).
    pub cpu_rt: bool,
    /// `hugetlb.*.rsvd` (Linux 5.7).
    pub hugetlb_rsvd: bool,
    /// `io.bfq.weight` or `blkio.bfq.weight`.
    pub bfq_weight: bool,
    /// `io.weight` (needs `CONFIG_BLK_CGROUP_IOCOST`) or `blkio.weight` (before Linux 5.0).
    pub io_weight: bool,
    /// clone3(2) with `CLONE_INTO_CGROUP` (Linux 5.7).
    pub clone_into_cgroup: bool,
    /// Programs of type `CGROUP_DEVICE` can be loaded and attached by this process.
    pub bpf_devices: bool,
    /// `BPF_F_REPLACE` (Linux 5.6).
    pub bpf_replace: bool,
}

/// A device node: its type and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Character or block.
    #[serde(rename = "type")]
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// A host: a handle on its [facts](HostFacts), which costs next to nothing to clone. What is changed of a clone is the
/// clone's alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Host(Arc<HostFacts>);

impl From<HostFacts> for Host {
    fn from(facts: HostFacts) -> Self {
        Self(Arc::new(facts))
    }
}

impl Deref for Host {
    type Target = HostFacts;

    fn deref(&self) -> &HostFacts {
        &self.0
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut HostFacts {
        Arc::make_mut(&mut self.0)
    }
}

/// The facts about a host, as `ringfence features` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// v1, hybrid or v2.
    pub mode: Mode,
    /// systemd is process 1.
    pub systemd: bool,
    /// The mounted hierarchies, version 1 ones first.
    pub hierarchies: Vec<Hierarchy>,
    /// What the kernel can do.
    pub capabilities: Capabilities,
    /// Device nodes by path: those that the hypervisor profiles name and that exist.
    pub devices: BTreeMap<PathBuf, DeviceNode>,
    /// The block major of the device mapper, from `/proc/devices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_mapper_major: Option<u32>,
    /// CPUs that are online.
    pub cpus: CpuSet,
    /// Memory nodes that are online.
    pub mems: CpuSet,
    /// Size of a page in bytes: memory limits are rounded down to it.
    pub page_size: u64,
    /// Sizes of huge pages, smallest first.
    pub huge_page_sizes: Vec<HugePageSize>,
    /// This process is not root of the initial user namespace.
    pub rootless: bool,
    /// What an unprivileged process may make cgroups below. `None` with `rootless`: nothing; without: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation: Option<Delegation>,
    /// Hierarchies are mounted read-only, as container engines do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The own cgroup is the root of a cgroup namespace, not of the machine.
    #[serde(default)]
    pub namespaced: bool,
    /// Where systemd keeps its units: below the root of each hierarchy. Empty but for a user's manager, and for one in a
    /// container without a cgroup namespace.
    #[serde(default)]
    pub systemd_root: String,
    #[serde(skip)]
    pub(crate) roots: Roots,
    #[serde(skip)]
    pub(crate) manager: SharedManager,
}

impl Host {
    /// A host from the JSON that `ringfence features -o json` prints.
    ///
    /// # Errors
    /// The text is no such JSON, or says something that no host can be: a page size that is no power of two, a
    /// hierarchy at a relative path or twice, a size that no huge page has.
    pub fn from_json(text: &str) -> Result<Self> {
        check_length(text).map_err(|error| error.with_setting("host"))?;
        let host: Self = serde_json::from_str(text).map_err(|error| {
            Error::new(crate::ErrorKind::InvalidInput, format!("not the JSON of a host: {error}"))
                .with_setting("host")
                .with_source(error)
        })?;
        host.check()?;
        Ok(host)
    }

    fn check(&self) -> Result<()> {
        if !self.page_size.is_power_of_two() {
            return Err(Error::invalid("host.page_size", self.page_size, "a power of two is needed"));
        }
        if let Some(odd) = self.hierarchies.iter().find(|hierarchy| !hierarchy.root.is_absolute()) {
            return Err(Error::invalid(
                "host.hierarchies.root",
                odd.root.display(),
                "an absolute path is needed",
            ));
        }
        let unified = self.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V2).count();
        let fits = match self.mode {
            Mode::V1 => unified == 0,
            Mode::Hybrid => unified == 1 && self.hierarchies.len() > 1,
            Mode::V2 => unified == 1 && self.hierarchies.len() == 1,
        };
        if !fits {
            return Err(Error::invalid(
                "host.mode",
                self.mode.as_str(),
                "v1 has hierarchies of version 1 alone, v2 one of version 2 alone, hybrid both",
            ));
        }
        if let Some(delegation) = &self.delegation
            && !(delegation.path.is_empty() || Subpath::is_clean(&delegation.path))
        {
            return Err(Error::invalid(
                "host.delegation.path",
                &delegation.path,
                "the path of a cgroup below the root, or nothing",
            ));
        }
        let offered = |controller: &Controller| {
            let offers = |hierarchy: &&Hierarchy| hierarchy.controllers.contains(controller);
            self.hierarchies.iter().filter(offers).count()
        };
        if let Some(twice) = Controller::ALL.into_iter().find(|controller| offered(controller) > 1) {
            return Err(Error::invalid(
                "host.hierarchies.controllers",
                twice,
                "a controller is in one hierarchy",
            ));
        }
        Ok(())
    }

    /// The hierarchy where this controller's files are, with its place in [`HostFacts::hierarchies`].
    pub fn hierarchy_of(&self, controller: Controller) -> Option<(usize, &Hierarchy)> {
        self.hierarchies.iter().enumerate().find(|(_, hierarchy)| hierarchy.controllers.contains(&controller))
    }

    /// The version of the hierarchy in this place.
    pub(crate) fn version_of(&self, hierarchy: usize) -> Version {
        self.hierarchies.get(hierarchy).map_or(Version::V1, |hierarchy| hierarchy.version)
    }

    /// Whether parts of a sandbox, with threads in them, have a directory of their own in a hierarchy: where CPU time and
    /// CPUs are given out, which are what threads can have by themselves.
    pub(crate) fn has_parts(&self, hierarchy: usize) -> bool {
        const BY_THREAD: [Controller; 3] = [Controller::Cpu, Controller::Cpuacct, Controller::Cpuset];
        self.hierarchies.get(hierarchy).is_some_and(|known| {
            // The v2 tree accounts for CPU time wherever it is alone.
            known.version == Version::V2 && self.mode == Mode::V2
                || known.controllers.iter().any(|controller| BY_THREAD.contains(controller))
        })
    }

    /// The version 2 hierarchy, with its place in [`HostFacts::hierarchies`].
    pub fn unified(&self) -> Option<(usize, &Hierarchy)> {
        self.hierarchies.iter().enumerate().find(|(_, hierarchy)| hierarchy.version == Version::V2)
    }
}

impl Hierarchy {
    /// What `/proc/PID/cgroup` may call it: one of its names.
    pub(crate) fn called(&self) -> String {
        match (self.version, &self.name, self.controllers.first()) {
            (Version::V1, Some(name), _) => format!("name={name}"),
            (Version::V1, None, Some(controller)) => controller.v1_name().to_owned(),
            _ => String::new(),
        }
    }

    /// Whether `/proc/PID/cgroup` calls it so: `""` is v2, `name=systemd` a named one, else the controllers.
    pub(crate) fn is_called(&self, names: &str) -> bool {
        match self.version {
            Version::V2 => names.is_empty(),
            Version::V1 => names.split(',').any(|name| match (&self.name, name.strip_prefix("name=")) {
                (Some(known), Some(name)) => known == name,
                (None, None) => self.controllers.iter().any(|controller| controller.v1_name() == name),
                _ => false,
            }),
        }
    }
}

impl Mode {
    /// `v1`, `hybrid` or `v2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_survives_its_own_json() {
        for host in [
            Host::standard(Mode::V1, false),
            Host::standard(Mode::Hybrid, true),
            Host::standard(Mode::V2, true),
        ] {
            let json = serde_json::to_string(&host).unwrap();
            assert_eq!(Host::from_json(&json).unwrap(), host);
        }
    }

    #[test]
    fn json_that_is_no_host_is_refused_with_the_reason() {
        let good = serde_json::to_value(Host::standard(Mode::V2, false)).unwrap();
        let with = |key: &str, value: serde_json::Value| {
            let mut host = good.clone();
            host[key] = value;
            Host::from_json(&host.to_string()).unwrap_err().to_string()
        };
        assert!(Host::from_json("").unwrap_err().to_string().contains("not the JSON of a host"));
        assert!(with("mode", "v3".into()).contains("v3"));
        assert!(with("mode", "v1".into()).contains("host.mode"));
        assert!(with("page_size", 0.into()).contains("power of two"));
        assert!(with("huge_page_sizes", serde_json::json!(["../x"])).contains("such as 2MB"));
        let mut relative = good["hierarchies"].clone();
        relative[0]["root"] = "sys/fs/cgroup".into();
        assert!(with("hierarchies", relative).contains("absolute"));
    }

    #[test]
    fn hierarchies_that_no_kernel_mounts_beside_each_other_are_refused() {
        let v2 = Hierarchy {
            version: Version::V2,
            root: "/sys/fs/cgroup/unified".into(),
            controllers: vec![Controller::Hugetlb],
            name: None,
            noprefix: false,
        };
        let v1 = Hierarchy { version: Version::V1, root: "/cgroup".into(), ..v2.clone() };
        let cpu = Hierarchy { controllers: vec![Controller::Cpu], ..v1.clone() };
        let host = |mode, hierarchies: &[&Hierarchy]| {
            let hierarchies = hierarchies.iter().copied().cloned().collect();
            let mut host = Host::standard(mode, false);
            host.hierarchies = hierarchies;
            Host::from_json(&serde_json::to_string(&host).unwrap()).map_err(|error| error.to_string())
        };
        for (mode, sound) in [(Mode::V1, &[&cpu, &v1][..]), (Mode::Hybrid, &[&cpu, &v2]), (Mode::V2, &[&v2])]
        {
            host(mode, sound).unwrap();
        }
        let (alone, cut) = (Hierarchy { controllers: Vec::new(), ..v2.clone() }, &[&v2][..]);
        for (mode, odd) in [
            (Mode::V1, cut),
            (Mode::Hybrid, cut),
            (Mode::V2, &[&cpu, &v2]),
            (Mode::Hybrid, &[&cpu, &v2, &alone]),
        ] {
            assert!(host(mode, odd).unwrap_err().contains("host.mode"), "{odd:?}");
        }
        let twice = host(Mode::Hybrid, &[&v1, &v2]).unwrap_err();
        assert!(twice.starts_with(r#"host.hierarchies.controllers = "hugetlb""#), "{twice}");
    }

    #[test]
    fn capabilities_that_older_json_lacks_are_taken_for_missing() {
        let mut host = serde_json::to_value(Host::standard(Mode::V2, false)).unwrap();
        host["capabilities"] = serde_json::json!({"psi": true, "from_the_future": true});
        let host = Host::from_json(&host.to_string()).unwrap();
        assert_eq!(host.capabilities, Capabilities { psi: true, ..Capabilities::default() });
    }

    #[test]
    fn a_controller_is_found_where_its_files_are() {
        let hybrid = Host::standard(Mode::Hybrid, false);
        let (index, memory) = hybrid.hierarchy_of(Controller::Memory).unwrap();
        assert_eq!((memory.version, &hybrid.hierarchies[index]), (Version::V1, memory));
        assert_eq!(hybrid.unified().unwrap().1.version, Version::V2);
        let v2 = Host::standard(Mode::V2, false);
        assert_eq!(v2.hierarchy_of(Controller::Io).unwrap().1.version, Version::V2);
        assert_eq!(v2.hierarchy_of(Controller::Devices), None);
        assert_eq!(Host::standard(Mode::V1, false).unified(), None);
    }
}
