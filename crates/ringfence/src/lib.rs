//! A cgroup manager for virtual containers.

pub mod devices;
mod error;
mod host;
mod kernel;
mod path;
mod report;
pub mod resources;
pub mod stats;

pub use devices::{DevicePolicy, DeviceRule, Profile};
pub use error::{Error, ErrorKind, Result};
pub use host::{Capabilities, Controller, DeviceNode, Hierarchy, Host, Mode, Version};
pub use kernel::proc::ProcessIdentity;
pub use path::{CgroupPath, SandboxId, Subpath, SystemdName};
pub use report::{Report, ReportLine};
pub use resources::{CpuSet, Limit, Resources};
pub use stats::StatsReader;
