//! What another process needs to take a sandbox over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Overhead;
use crate::devices::{DevicePolicy, DeviceRule, Profile};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Mode;
use crate::kernel::proc::ProcessIdentity;
use crate::path::CgroupPath;
use crate::report::Report;
use crate::resources::Resources;

/// The version of the format that is written.
pub const STATE_VERSION: u32 = 1;

/// How far a sandbox has come; written before and after the kernel is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is being made; if nobody is at it, a crash left it half made.
    Creating,
    /// It is there.
    Ready,
    /// It is being removed.
    Removing,
}

/// Everything that another process needs to restore a sandbox: a value, kept by the caller or by a
/// [`Store`](crate::Store).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The format, [`STATE_VERSION`].
    pub version: u32,
    /// How far it has come.
    pub phase: Phase,
    /// The path as it was given.
    pub path: CgroupPath,
    /// The path below the root of each hierarchy.
    pub cgroup: String,
    /// The parent is the default one, which goes with its last sandbox.
    pub parent_is_default: bool,
    /// The host's mode when it was made.
    pub mode: Mode,
    /// What is wanted, the caller's device rules included.
    pub resources: Resources,
    /// The hypervisor profile.
    pub profile: Profile,
    /// The device policy in force: the profile and the caller's rules together.
    pub devices: DevicePolicy,
    /// The kernel's number of our device program (v2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_program: Option<u32>,
    /// A device program of another manager above may be overridden (v2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_device_programs: bool,
    /// Devices that were added later, by the name of their claim.
    #[serde(default)]
    pub claims: BTreeMap<String, Vec<DeviceRule>>,
    /// Where the VMM's own threads are.
    pub overhead: Overhead,
    /// Parts of the sandbox with limits of their own: name → path below the root of each hierarchy.
    #[serde(default)]
    pub parts: BTreeMap<String, String>,
    /// The process that answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<ProcessIdentity>,
    /// What could not be done.
    #[serde(default)]
    pub report: Report,
}

impl State {
    /// Refuses a state of a format that this version does not know.
    pub(crate) fn check_version(&self) -> Result<()> {
        if self.version <= STATE_VERSION {
            return Ok(());
        }
        let why = format!("written by a newer version (this one reads up to {STATE_VERSION})");
        Err(Error::new(ErrorKind::State, why).with_setting("version").with_value(self.version))
    }
}
