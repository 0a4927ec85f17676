//! The controllers, and their names in the two versions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A cgroup controller. The names are v2's where the versions differ: `io` is v1's `blkio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// CPU time accounting (v1; part of `cpu` on v2).
    Cpuacct,
    /// CPUs and memory nodes.
    Cpuset,
    /// Memory.
    Memory,
    /// Block devices.
    Io,
    /// Number of tasks.
    Pids,
    /// Device access (v1; an eBPF program on v2).
    Devices,
    /// Freezing (v1; part of the core on v2).
    Freezer,
    /// Huge pages.
    Hugetlb,
    /// RDMA resources.
    Rdma,
    /// Scalar resources.
    Misc,
    /// Network class of packets (v1).
    NetCls,
    /// Network priority by interface (v1).
    NetPrio,
    /// perf events (v1; implicit on v2).
    PerfEvent,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Io,
        Self::Pids,
        Self::Devices,
        Self::Freezer,
        Self::Hugetlb,
        Self::Rdma,
        Self::Misc,
        Self::NetCls,
        Self::NetPrio,
        Self::PerfEvent,
    ];

    /// The name, v2's where the versions differ.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Io => "io",
            other => other.v1_name(),
        }
    }

    /// The name in the mount options of v1 and in front of v1's files.
    pub fn v1_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Io => "blkio",
            Self::Pids => "pids",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Hugetlb => "hugetlb",
            Self::Rdma => "rdma",
            Self::Misc => "misc",
            Self::NetCls => "net_cls",
            Self::NetPrio => "net_prio",
            Self::PerfEvent => "perf_event",
        }
    }

    /// The name in v2's `cgroup.controllers`; none for controllers that are not listed there.
    pub fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Cpuacct
            | Self::Devices
            | Self::Freezer
            | Self::NetCls
            | Self::NetPrio
            | Self::PerfEvent => None,
            other => Some(other.as_str()),
        }
    }

    /// The controller with this name on v1.
    pub fn from_v1(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|controller| controller.v1_name() == name)
    }

    /// The controller with this name in v2's `cgroup.controllers`.
    pub fn from_v2(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|controller| controller.v2_name() == Some(name))
    }

    /// The controllers of v2's `cgroup.controllers` or `cgroup.subtree_control`, without those that are not known here.
    pub(crate) fn list_from_v2(text: &str) -> Vec<Self> {
        text.split_ascii_whitespace().filter_map(Self::from_v2).collect()
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_found_by_its_names() {
        for controller in Controller::ALL {
            assert_eq!(Controller::from_v1(controller.v1_name()), Some(controller));
            assert_eq!(serde_json::to_value(controller).unwrap(), controller.as_str());
            if let Some(name) = controller.v2_name() {
                assert_eq!(Controller::from_v2(name), Some(controller));
            }
        }
        assert_eq!(Controller::from_v1("io"), None);
        assert_eq!(Controller::from_v2("blkio"), None);
        assert_eq!(Controller::from_v2("devices"), None);
    }

    #[test]
    fn controllers_that_are_not_known_are_left_out() {
        use Controller::{Cpu, Io};
        assert_eq!(Controller::list_from_v2("cpu dmem io\n"), [Cpu, Io]);
        assert_eq!(Controller::list_from_v2("\n"), []);
    }
}
