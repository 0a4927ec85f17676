//! What a sandbox should be.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Pin;
use super::layout::EachThread;
use super::state::{Anew, State};
use crate::cgroup::STATISTICS;
use crate::devices::Profile;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Host};
use crate::path::{CgroupPath, SystemdName};
use crate::plan::{Owner, Unsupported, Want};
use crate::report::Report;
use crate::resources::{Cpu, Resources};
use crate::threads::{Finder, ThreadNames, Vmm};

/// Where the VMM's own threads are: those that do not run the guest's CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Overhead {
    /// With the workload, in one cgroup; limits hold for both as a whole.
    #[default]
    Together,
    /// In a part of its own beside that of the vCPUs, below the cgroup of the whole: a limit of CPU time, and CPUs, hold for
    /// the vCPUs alone. The default of the VMM profiles.
    Nested,
    /// In a cgroup of its own elsewhere, with limits of its own, memory too. Helper processes go there whole. On v1 so do the
    /// VMM's own threads as far as threads count (CPU time, CPUs), while its memory stays charged to the sandbox; on v2
    /// they stay inside, since the threads of a process cannot be in different domains.
    Separate(CgroupPath),
}

impl fmt::Display for Overhead {
    /// As on the command line: `separate=/kata_overhead/vm1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Together => f.write_str("together"),
            Self::Nested => f.write_str("nested"),
            Self::Separate(path) => write!(f, "separate={path}"),
        }
    }
}

impl Overhead {
    /// Where nobody says: [`Nested`](Self::Nested) for a VMM of which it is known which threads run vCPUs.
    pub fn of_profile(profile: Profile) -> Self {
        match profile {
            Profile::None | Profile::Default => Self::Together,
            _ => Self::Nested,
        }
    }

    /// Refuses limits of the overhead that it cannot have by itself.
    pub(super) fn allows(&self, limits: &Resources) -> Result<()> {
        if limits.is_empty() {
            return Ok(());
        }
        match self {
            Self::Together => refused(
                "overhead",
                limits,
                "takes the overhead nested (CPU bandwidth and CPUs) or separate (all limits)",
            ),
            Self::Separate(_) if !limits.devices.is_empty() => {
                let devices = Resources { devices: limits.devices.clone(), ..Resources::default() };
                refused(
                    "overhead",
                    &devices,
                    "the overhead may open what the sandbox may: it has no devices of its own",
                )
            }
            Self::Nested if !is_by_thread(limits) => refused(
                "overhead",
                &not_by_thread(limits),
                "takes the overhead separate: of a nested one, which has threads alone, CPU bandwidth and CPUs can be limited",
            ),
            _ => limits.validate(),
        }
    }

    /// The same, of those that each thread has by itself.
    pub(super) fn allows_each(&self, each: &EachThread) -> Result<()> {
        for (whose, limits) in [("each_vcpu", &each.vcpu), ("each_iothread", &each.iothread)] {
            if limits.is_empty() {
                continue;
            }
            if *self != Self::Nested {
                return refused(
                    whose,
                    limits,
                    "takes the overhead nested: threads have limits of their own there",
                );
            }
            if !is_by_thread(limits) {
                return refused(
                    whose,
                    &not_by_thread(limits),
                    "of threads only CPU bandwidth and CPUs can be limited",
                );
            }
            limits.validate()?;
        }
        Ok(())
    }
}

/// An error that names one of the limits, with `whose` before its name.
fn refused(whose: &str, limits: &Resources, why: &'static str) -> Result<()> {
    let (mut name, mut value) = (whose.to_owned(), serde_json::to_value(limits).unwrap_or_default());
    // The last one: a quota comes after its period, which may be the default.
    while let serde_json::Value::Object(fields) = &value
        && let Some((field, inner)) = fields.iter().next_back()
    {
        name = format!("{name}.{field}");
        value = inner.clone();
    }
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Err(Error::new(ErrorKind::InvalidInput, why).with_setting(name).with_value(value))
}

/// The limits that cannot be set for a part, which is made of threads.
fn not_by_thread(limits: &Resources) -> Resources {
    let cpu = Cpu { quota: None, period: None, burst: None, cpus: None, ..limits.cpu.clone() };
    Resources { cpu, ..limits.clone() }
}

/// Whether these are limits that a part of a process can have.
fn is_by_thread(limits: &Resources) -> bool {
    not_by_thread(limits) == Resources::default()
}

/// How the vCPU threads of a VMM are found: what is not said is taken from the profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VcpuHints {
    /// The socket of QEMU's monitor (`-qmp unix:PATH,server=on,wait=off`), which knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<PathBuf>,
    /// How they are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<ThreadNames>,
    /// How many there are at least; 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

impl VcpuHints {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Asks the monitor of QEMU at this socket.
    pub fn qmp(mut self, socket: impl Into<PathBuf>) -> Self {
        self.qmp = Some(socket.into());
        self
    }

    /// Threads of these names.
    pub fn names(mut self, names: impl Into<ThreadNames>) -> Self {
        self.names = Some(names.into());
        self
    }

    /// At least so many.
    pub fn count(mut self, vcpus: u32) -> Self {
        self.count = Some(vcpus);
        self
    }

    /// These, and for the rest others.
    pub(super) fn or(&self, others: &Self) -> Self {
        let source = if self.qmp.is_some() || self.names.is_some() { self } else { others };
        Self { qmp: source.qmp.clone(), names: source.names.clone(), count: self.count.or(others.count) }
    }

    /// The way to find them.
    pub(super) fn finder(&self, profile: Profile) -> Option<Finder> {
        let named = || self.names.clone().or(Vmm::of(profile).map(ThreadNames::from)).map(Finder::from);
        self.qmp.as_ref().map(Finder::qmp).or_else(named)
    }
}

/// What a sandbox should be: a path, resources, a profile, and what to do where the host lacks something.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    pub(crate) path: CgroupPath,
    pub(crate) resources: Resources,
    pub(crate) profile: Profile,
    overhead: Option<Overhead>,
    pub(crate) overhead_resources: Resources,
    pub(crate) each: EachThread,
    pub(crate) vcpu_hints: VcpuHints,
    pub(super) pin: Option<Pin>,
    pub(crate) unsupported: Unsupported,
    parent: Option<CgroupPath>,
    name_prefix: Option<String>,
    pub(crate) unread: Report,
    evacuate: bool,
    allow_nested: bool,
    pub(crate) owner: Option<Owner>,
    statistics: Vec<Controller>,
    pub(crate) override_device_programs: bool,
}

impl SandboxConfig {
    /// A sandbox at this path without limits, with the devices of the `default` profile.
    pub fn new(path: CgroupPath) -> Self {
        Self {
            path,
            resources: Resources::default(),
            profile: Profile::Default,
            overhead: None,
            overhead_resources: Resources::default(),
            each: EachThread::default(),
            vcpu_hints: VcpuHints::default(),
            pin: None,
            unsupported: Unsupported::Report,
            parent: None,
            name_prefix: None,
            unread: Report::default(),
            evacuate: false,
            allow_nested: false,
            owner: None,
            statistics: STATISTICS.to_vec(),
            override_device_programs: false,
        }
    }

    /// What it may use, device rules included.
    pub fn resources(mut self, resources: Resources) -> Self {
        self.resources = resources;
        self
    }

    /// The devices that the hypervisor needs.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Where the VMM's own threads are; by the profile unless given, see [`Overhead::of_profile`].
    pub fn overhead(mut self, overhead: Overhead) -> Self {
        self.overhead = Some(overhead);
        self
    }

    /// Limits of the overhead. Where it is nested, CPU bandwidth and CPUs: memory and block I/O are charged to processes, not
    /// to threads, and are limited for the whole. Where it is separate, all but devices, which are the sandbox's.
    pub fn overhead_resources(mut self, resources: Resources) -> Self {
        self.overhead_resources = resources;
        self
    }

    /// Limits that each vCPU thread, and each I/O thread, has by itself, where the overhead is nested: CPU bandwidth and CPUs.
    pub fn each_thread(mut self, limits: EachThread) -> Self {
        self.each = limits;
        self
    }

    /// How the vCPU threads are found when the VMM runs.
    pub fn vcpu_hints(mut self, hints: VcpuHints) -> Self {
        self.vcpu_hints = hints;
        self
    }

    /// Pins each vCPU to a CPU of its own, where the overhead has a part of its own. It is done by
    /// [`Entry::pin_vcpus`](crate::Entry::pin_vcpus) or [`Sandbox::pin_vcpus`](crate::Sandbox::pin_vcpus), when vCPUs were found.
    pub fn pin(mut self, pin: Pin) -> Self {
        self.pin = Some(pin);
        self
    }

    /// Report what this host cannot do, or refuse.
    pub fn unsupported(mut self, unsupported: Unsupported) -> Self {
        self.unsupported = unsupported;
        self
    }

    /// The parent of relative paths; `/ringfence` unless given, and for a process without privileges `ringfence` below
    /// what is delegated to it. Then a parent that is relative itself goes there too.
    pub fn parent(mut self, parent: CgroupPath) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Goes before the last component of the path (Kata: `kata_`, which hides the cgroup from cAdvisor).
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.name_prefix = Some(prefix.into());
        self
    }

    /// In a container on v2, and where a cgroup is delegated: move the processes of the namespace's root, or of that
    /// cgroup, to a leaf, so that it can enable controllers.
    pub fn evacuate(mut self, evacuate: bool) -> Self {
        self.evacuate = evacuate;
        self
    }

    /// Allows the cgroup to be inside another sandbox's: what is killed or frozen there is killed and frozen here too, and the
    /// outer one is not removed while this one is there. Without it such a path is an error. Units of systemd in a slice that
    /// is a sandbox need no permission.
    pub fn allow_nested(mut self, allow: bool) -> Self {
        self.allow_nested = allow;
        self
    }

    /// Delegates the new cgroup: the user may make cgroups below it, and share out among them what it has; its own limits
    /// stay out of reach. Theirs become the directory and, on v2, the files of `/sys/kernel/cgroup/delegate`; on v1
    /// `cgroup.procs` and `tasks`. Takes CAP_CHOWN.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some(Owner { uid, gid });
        self
    }

    /// The fields of the document, from which the resources were read, that nobody reads: part of the report.
    pub fn unread(mut self, unread: Report) -> Self {
        self.unread = unread;
        self
    }

    /// The v2 controllers that statistics need, enabled beside those that carry limits; cpu, memory, io and pids unless
    /// given.
    pub fn statistics(mut self, controllers: impl IntoIterator<Item = Controller>) -> Self {
        self.statistics = controllers.into_iter().collect();
        self
    }

    /// On v2, where a program of another manager above was attached with `BPF_F_ALLOW_OVERRIDE`: attach ours all the
    /// same, which is then the only one that is asked. Reported. Without this it is an error.
    pub fn override_device_programs(mut self, allow: bool) -> Self {
        self.override_device_programs = allow;
        self
    }

    /// The path below the root of each hierarchy; `""` where no cgroup can be made.
    pub(crate) fn resolve(&self, host: &Host) -> Result<String> {
        host.locate(&self.path, self.parent.as_ref(), self.name_prefix.as_deref())
    }

    /// Where the VMM's own threads are to be. A slice has no threads.
    ///
    /// # Errors
    /// Limits for what has no part of its own, or that no part can have; parts of a slice.
    pub(super) fn overhead_at(&self) -> Result<Overhead> {
        let is_slice = self.path.as_systemd().is_some_and(SystemdName::is_slice);
        let overhead = match &self.overhead {
            Some(given) if is_slice && *given != Overhead::Together => {
                let why = "together, for a slice: no threads go into it";
                return Err(Error::invalid("overhead", given, why));
            }
            Some(Overhead::Separate(CgroupPath::Systemd(name))) if name.is_slice() => {
                let why = "a scope, slice:prefix:name: no process goes into a slice";
                return Err(Error::invalid("overhead", format!("separate={name}"), why));
            }
            None if is_slice => Overhead::Together,
            given => given.clone().unwrap_or_else(|| Overhead::of_profile(self.profile)),
        };
        overhead.allows(&self.overhead_resources)?;
        overhead.allows_each(&self.each)?;
        Ok(overhead)
    }

    /// What the separate overhead should be: the limits that are its own, the devices and the owner of the sandbox.
    pub(super) fn apart(&self, overhead: &Overhead) -> Option<Box<Self>> {
        match overhead {
            Overhead::Separate(path) => Some(Box::new(self.of_separate(path.clone()))),
            Overhead::Together | Overhead::Nested => None,
        }
    }

    // Where there is none, its room on the stack is not touched: after a fork each page that is costs more than a system
    // call.
    #[inline(never)]
    fn of_separate(&self, path: CgroupPath) -> Self {
        let mut resources = self.overhead_resources.clone();
        resources.devices.clone_from(&self.resources.devices);
        Self {
            path,
            resources,
            overhead: Some(Overhead::Together),
            overhead_resources: Resources::default(),
            vcpu_hints: VcpuHints::default(),
            // For the sandbox's own name.
            name_prefix: None,
            unread: Report::default(),
            ..self.clone()
        }
    }

    pub(super) fn want<'a>(&'a self, state: &'a State, anew: &'a Anew<'_>) -> Want<'a> {
        Want {
            evacuate: self.evacuate,
            allow_nested: self.allow_nested,
            statistics: &self.statistics,
            unsupported: self.unsupported,
            ..state.want(anew)
        }
    }
}
