//! Is this host ready, and what to do about what is not.
//!
//! [`Facts::read`] looks at the machine and changes nothing that outlives it; [`Facts::findings`] is pure: what these
//! facts mean, and the command or the kernel parameter that mends it.
//!
//! ```no_run
//! use ringfence::doctor::Facts;
//!
//! for finding in Facts::read(None).findings() {
//!     println!("{}: {}", finding.check, finding.found);
//!     if let Some(advice) = finding.advice {
//!         println!("    {advice}");
//!     }
//! }
//! ```

mod cgroups;
mod machine;
mod read;
mod systemd;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::Serialize;

use crate::host::{Controller, Host};
use crate::resources::HugePageSize;

/// What a finding means for sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works; worth knowing, or better in another way.
    Note,
    /// Something that a sandbox may ask for cannot be done.
    Limited,
    /// This caller can make no sandbox here.
    Unusable,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at: a name that stays.
    pub check: &'static str,
    /// Nothing has to be done: the verdict is [`Verdict::Good`] or [`Verdict::Note`].
    pub ok: bool,
    /// How bad it is.
    pub verdict: Verdict,
    /// What there is, and how that was tried.
    pub found: String,
    /// What to do about it: a command or a kernel parameter.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { check, ok: verdict <= Verdict::Note, verdict, found: found.into(), advice: None }
    }

    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Good, found)
    }

    fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Note, found)
    }

    fn limited(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Limited, found)
    }

    fn unusable(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Unusable, found)
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// What was read of a machine, as far as [`Host`] does not have it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Facts {
    /// The host, or why there is none: no cgroups are mounted, `/proc` cannot be read.
    pub host: Result<Host, String>,
    /// Hierarchies of the host that cannot be written to: read-only mounts.
    pub read_only: Vec<PathBuf>,
    /// Hierarchies in whose root this process may not make directories, though they are not mounted read-only.
    pub refused: Vec<PathBuf>,
    /// The place in the version 2 tree below which sandboxes are made.
    pub base: Option<Base>,
    /// What the version 2 tree is mounted with (`nsdelegate`).
    pub mount_options: Vec<String>,
    /// What this kernel could mount it with: `/sys/kernel/cgroup/features`.
    pub mount_features: Vec<String>,
    /// Of this kernel: `6.12.1-amd64`.
    pub release: String,
    /// Its parameters: `/proc/cmdline`.
    pub parameters: String,
    /// Pressure stall information.
    pub pressure: Pressure,
    /// A swap device or file is in use.
    pub swap_is_on: bool,
    /// Huge pages that are reserved, and how many of these are free.
    pub huge_pages: Vec<(HugePageSize, u64, u64)>,
    /// `RLIMIT_MEMLOCK` in bytes; `None` for no limit.
    pub locked_memory: Option<u64>,
    /// `/dev/kvm`, by making a virtual machine.
    pub kvm: Hypervisor,
    /// `/dev/mshv`, by opening it.
    pub mshv: Hypervisor,
    /// Device nodes that serve virtual machines.
    pub nodes: Vec<(&'static str, Node)>,
    /// Groups of devices behind an IOMMU.
    pub iommu_groups: usize,
    /// The program that is process 1.
    pub process_1: Option<String>,
    /// The version of systemd, where it is process 1 and says so.
    pub systemd_version: Option<u32>,
    /// The bus on which this process would reach systemd: the system's, or of an unprivileged user the user's own.
    pub bus: Bus,
    /// The user of this process, and whether systemd keeps their manager running while they are not logged in.
    pub user: User,
}

/// The cgroup below which sandboxes are made: the root, or what is delegated to an unprivileged caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its directory.
    pub directory: PathBuf,
    /// It is the root of the machine, to which neither limits nor the rule against processes beside children apply.
    pub is_top: bool,
    /// An unprivileged caller may make cgroups here.
    pub is_delegated: bool,
    /// `cgroup.controllers`.
    pub controllers: Vec<Controller>,
    /// `cgroup.subtree_control`.
    pub enabled: Vec<Controller>,
    /// Processes are in it, not below it.
    pub has_processes: bool,
    /// `nr_dying_descendants` of the topmost cgroup that is seen: removed, but not gone.
    pub dying: u64,
    /// `nr_descendants` of the same.
    pub descendants: u64,
    /// Limits on the number and the depth of cgroups, from the top down to here.
    pub ceilings: Vec<Ceiling>,
}

/// `cgroup.max.descendants` and `cgroup.max.depth` of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// Its directory.
    pub directory: PathBuf,
    /// How many cgroups may be below it.
    pub max_descendants: Option<u64>,
    /// How many there are.
    pub descendants: u64,
    /// How many levels may be below it.
    pub max_depth: Option<u64>,
    /// How many levels it is above the base.
    pub levels: u64,
}

/// Pressure stall information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// `/proc/pressure` can be read.
    Works,
    /// It is there, and switched off.
    Off,
    /// It is not there.
    Missing,
}

/// What a hypervisor's device did when it was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hypervisor {
    /// There is no such device.
    Missing,
    /// It could not be opened for reading and writing.
    Refused(String),
    /// It was opened, and does not make a virtual machine.
    Fails(String),
    /// It was opened; nothing more was tried.
    Opens,
    /// It made a virtual machine.
    Works,
}

/// A device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// It is not there.
    Missing,
    /// It is there, and not for this process.
    Refused,
    /// This process may read and write it, as far as its permissions tell.
    Usable,
}

/// The way to systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bus {
    /// The socket.
    pub socket: PathBuf,
    /// Why connecting to it failed, if it did.
    pub failure: Option<String>,
}

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The effective user ID.
    pub id: u32,
    /// The name, where `/etc/passwd` has it.
    pub name: Option<String>,
    /// systemd keeps the user's manager running.
    pub lingers: bool,
}

impl User {
    /// What a command is given to mean this user.
    fn argument(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.id.to_string())
    }
}

impl Facts {
    /// What these facts mean, in the order in which one would look: the kernel, cgroups, the machine, systemd.
    pub fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        found.push(self.kernel());
        self.about_cgroups(&mut found);
        self.about_the_machine(&mut found);
        self.about_systemd(&mut found);
        found
    }

    /// The kernel's version, as far as it is one.
    fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    fn is_older_than(&self, major: u32, minor: u32) -> bool {
        self.kernel_version().is_some_and(|version| version < (major, minor))
    }

    /// Whether the kernel was booted with this parameter.
    fn has_parameter(&self, parameter: &str) -> bool {
        self.parameters.split_ascii_whitespace().any(|given| given == parameter)
    }
}

fn names(controllers: &[Controller]) -> String {
    controllers.iter().map(|controller| controller.as_str()).collect::<Vec<_>>().join(" ")
}
