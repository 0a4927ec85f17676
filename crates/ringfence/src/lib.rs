//! A cgroup manager for virtual containers.
//!
//! A virtual container (a Kata-style pod, a microVM, any VM sandbox) is a virtual machine on a Linux host: a VMM process,
//! its vCPU and I/O threads, helpers. Ringfence puts all of it into cgroups, opens to it exactly the devices that a
//! hypervisor needs, applies OCI `LinuxResources`, measures, freezes, and takes everything away again without leaving
//! anything behind: on cgroup v1, hybrid and v2, by itself or, where a path names a unit (`slice:prefix:name`), with systemd.
//!
//! What will be done is a value, worked out before anything is touched, for this host or for any other:
//!
//! ```
//! use ringfence::{Host, Limit, Mode, Profile, Resources, Sandbox, SandboxConfig};
//!
//! let want = Resources::new().memory_limit(256 << 20).memory_swap(256 << 20).pids_limit(64);
//! let config = SandboxConfig::new("vm1".parse()?).resources(want).profile(Profile::Qemu);
//! let plan = Sandbox::plan(&Host::standard(Mode::V2, false), &config)?;
//! assert!(plan.to_string().contains("/sys/fs/cgroup/ringfence/vm1/memory.swap.max <- 0"));
//! # Ok::<(), ringfence::Error>(())
//! ```
//!
//! Doing it needs a host with cgroups, and the right to make them:
//!
//! ```no_run
//! use std::time::Duration;
//! use ringfence::{Command, Host, Remaining, Resources, Sandbox, SandboxConfig};
//!
//! const SOON: Duration = Duration::from_secs(5);
//!
//! let host = Host::detect()?;                                        // once per process
//! let config = SandboxConfig::new("vm1".parse()?).resources(Resources::new().memory_limit(256 << 20));
//! let (vm, report) = Sandbox::create(&host, &config)?;               // all of it, or nothing
//! print!("{report}");                                                // what this host cannot do
//! let vmm = vm.spawn(&Command::new("qemu-system-x86_64").args(["-S"]))?; // never outside, not for an instant
//! vm.change(&Resources::new().cpu_quota(150_000))?;                  // merges; all or nothing
//! println!("{:?}", vm.stats_reader()?.sample()?.memory.current);
//! let state = serde_json::to_string(&vm.state()).expect("a state is JSON");
//! // … in another process:
//! let vm = Sandbox::restore(&host, serde_json::from_str(&state).expect("a state"))?;
//! vm.freeze(SOON)?;
//! vm.thaw(SOON)?;
//! vm.destroy(Remaining::Kill, SOON)?;
//! # drop(vmm);
//! # Ok::<(), ringfence::Error>(())
//! ```

#[cfg(test)]
#[macro_use]
#[path = "../tests/it/support/testbed.rs"]
mod testbed;

#[cfg(test)]
mod allocations;
mod cgroup;
mod convert;
pub mod devices;
pub mod doctor;
mod document;
mod driver;
mod error;
pub mod events;
pub mod explain;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod interface;
mod kernel;
#[cfg(feature = "libvirt")]
mod libvirt;
mod path;
mod plan;
mod report;
pub mod resources;
mod sandbox;
#[cfg(test)]
mod skip;
pub mod stats;
mod systemd;
pub mod terminal;
mod text;
mod threads;

// Of the unit tests those that need a kernel.
#[cfg(test)]
testbed! {
    modes: "all rdma rdma-v1";
    drivers: "cgroupfs systemd";
    guest: "own";
}

pub use cgroup::{Cgroup, Child, Command, Failures, JoinOptions, Outcome, Remaining, STATISTICS, Task, null};
pub use convert::UnitProperties;
pub use devices::{DeviceNumber, DevicePolicy, DeviceRule, Profile};
pub use document::{LONGEST_DOCUMENT, read_document};
pub use error::{Error, ErrorKind, Result, unless_gone};
pub use events::{Event, Events, PressureTrigger, What};
pub use explain::Explanation;
pub use host::{Capabilities, Controller, Delegation, DeviceNode, Hierarchy, Host, HostFacts, Mode, Version};
pub use kernel::proc::ProcessIdentity;
pub use kernel::signals::stop_ignoring_children;
#[cfg(feature = "libvirt")]
pub use libvirt::LibvirtDomain;
pub use path::{CgroupPath, SandboxId, Subpath, SystemdName};
pub use plan::{Owner, Plan, Step, Unsupported};
pub use report::{Report, ReportLine};
pub use resources::{CpuSet, Limit, Resources};
pub use sandbox::{
    Begun, ChangeOptions, Claim, Collected, Difference, EachThread, Entry, GcAction, GcOptions, Hold,
    Leftover, Overhead, Part, Phase, Pin, Placed, STATE_VERSION, Sandbox, SandboxConfig, State, Status,
    Store, TakenCpus, VcpuHints,
};
pub use stats::StatsReader;
pub use systemd::{SystemdLimit, limit_systemd};
pub use threads::{
    Expect, Finder, Helper, IoThread, KernelThread, KernelThreadKind, NamePattern, Qmp, ThreadNames,
    VcpuThread, Vmm, VmmThreads,
};

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
