//! The ordered steps of a plan: what is done, how it is verified, what each refusal means, and how it is undone.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::devices::DevicePolicy;
use crate::devices::filter::Override;
use crate::error::Error;
use crate::host::{Controller, Host, Mode};
use crate::interface::merged;
use crate::plan::systemd::{Told, printed};
use crate::plan::{Owner, Unsupported};
use crate::report::Report;
use crate::resources::CpuSet;
use crate::systemd::property::{Property, tell};
use crate::terminal::Escaped;

/// A cgroup in one hierarchy: the index of the hierarchy in [`HostFacts::hierarchies`](crate::HostFacts::hierarchies), and
/// the path below its root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Dir {
    pub(crate) hierarchy: usize,
    pub(crate) path: Arc<str>,
}

impl Dir {
    pub(crate) fn new(hierarchy: usize, path: impl Into<Arc<str>>) -> Self {
        Self { hierarchy, path: path.into() }
    }

    /// The path of the parent, or `None` for the root of the hierarchy.
    pub(crate) fn above(&self) -> Option<&str> {
        let has_parent = !self.path.is_empty();
        has_parent.then(|| self.path.rsplit_once('/').map_or("", |(parent, _)| parent))
    }

    /// The parent, or `None` for the root of the hierarchy.
    pub(crate) fn parent(&self) -> Option<Self> {
        self.above().map(|above| Self::new(self.hierarchy, above))
    }

    /// The last component; `""` for the root.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit_once('/').map_or(&*self.path, |(_, name)| name)
    }

    /// The path in the file system, as this process sees it.
    pub(crate) fn full(&self, host: &Host) -> PathBuf {
        let root =
            host.hierarchies.get(self.hierarchy).map(|hierarchy| hierarchy.root.clone()).unwrap_or_default();
        if self.path.is_empty() { root } else { root.join(&*self.path) }
    }

    /// It could not be opened.
    pub(crate) fn not_opened(&self, host: &Host, errno: Errno) -> Error {
        Error::kernel("cannot open the cgroup", self.full(host), errno)
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Makes the directory. An ancestor may exist already, the cgroup itself may not.
    MakeDir { dir: Dir, ancestor: bool },
    /// Enables controllers for the children of `dir`: all at once, one at a time on failure. Those that are only `wanted`
    /// (for statistics) may be refused; the `required` ones carry limits. For `threads`, those below are threaded and
    /// processes may be in `dir`.
    EnableControllers {
        dir: Dir,
        required: Vec<Controller>,
        wanted: Vec<Controller>,
        evacuate: bool,
        threads: bool,
    },
    /// Writes one value to one file.
    Write { dir: Dir, file: Cow<'static, str>, value: String },
    /// Loads and attaches the eBPF program of the policy, atomically in the place of our earlier one.
    DeviceFilter { dir: Dir, policy: DevicePolicy, overriding: Override },
    /// Starts a unit of systemd around the processes that are at hand, with everything that it is told. `path` is that of
    /// its cgroup.
    StartUnit { unit: String, slice: String, path: String, properties: Vec<Property>, told: Vec<Told> },
    /// Tells a unit of systemd that runs.
    SetProperties { unit: String, told: Vec<Told> },
    /// Gives the directory to a user, with the files by which a cgroup is delegated; never the limits.
    Delegate { dir: Dir, owner: Owner },
}

/// How the executor sees that the kernel did what was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Verify {
    /// The write succeeding is proof enough.
    #[default]
    Accepted,
    /// The file reads back this value; otherwise the error says which values the kernel takes.
    ReadsBack { allowed: &'static str },
    /// The set in this file lies within what was asked. cgroup v2 accepts CPUs that the parent lacks and then runs
    /// elsewhere.
    Within { file: &'static str, asked: CpuSet },
    /// `devices.list` equals the policy.
    DeviceList(DevicePolicy),
}

/// What to do when the kernel refuses a step with a certain errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Try again after the next step.
    Defer,
    /// Try again for a moment: a child cgroup that was removed counts for a little longer (v1 devices).
    DeviceReset,
    /// Go on, with this line in the report: this host cannot do it, as only shows now. An error in strict mode.
    Unsupported(&'static str),
    /// Go on: this is a default that nobody asked for.
    Skip,
    /// Fail, with this explanation.
    Explain(&'static str),
    /// Fail, with what it means of a device rule (v1).
    DeviceRule,
    /// Fail, with the memory in use now and at its peak (v1 files).
    MemoryInUse,
}

/// How a step is taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Nothing to take back, or removing the new directory does it.
    #[default]
    Nothing,
    /// The directory goes, if this step made it.
    RemoveDir,
    /// These files get these values, in this order.
    Write(Vec<(Cow<'static, str>, String)>),
    /// The file gets what it is found to hold when the step comes: it was not there before, since its controller is only
    /// enabled on the way.
    AsFound,
    /// The program that was replaced is put back.
    DeviceFilter,
    /// The processes go back to where they came from, and the unit is stopped.
    StopUnit,
}

impl Undo {
    /// These lines, one by one, to one file.
    pub(crate) fn write(file: &str, lines: Vec<String>) -> Self {
        Self::Write(lines.into_iter().map(|line| (file.to_owned().into(), line)).collect())
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub(crate) action: Action,
    /// The setting in OCI's words, where the step carries one.
    pub(crate) setting: Option<Cow<'static, str>>,
    pub(crate) verify: Verify,
    pub(crate) reactions: Vec<(Errno, Reaction)>,
    pub(crate) undo: Undo,
}

impl Step {
    /// Hierarchy, directory and file of which it is; equal for equal steps.
    fn place(&self) -> (usize, &str, &str) {
        match &self.action {
            Action::MakeDir { dir, .. }
            | Action::EnableControllers { dir, .. }
            | Action::DeviceFilter { dir, .. }
            | Action::Delegate { dir, .. } => (dir.hierarchy, &dir.path, ""),
            Action::Write { dir, file, .. } => (dir.hierarchy, &dir.path, file),
            _ => (usize::MAX, "", ""),
        }
    }

    /// The directory, file and value of a write.
    pub(super) fn as_write(&self) -> Option<(&Dir, &str, &str)> {
        match &self.action {
            Action::Write { dir, file, value } => Some((dir, file, value)),
            _ => None,
        }
    }

    /// The step itself, then the writes that systemd makes for the properties that the step sets.
    pub(super) fn and_told(&self) -> impl Iterator<Item = &Self> {
        let told = match &self.action {
            Action::StartUnit { told, .. } | Action::SetProperties { told, .. } => told.as_slice(),
            _ => &[],
        };
        std::iter::once(self).chain(told.iter().map(|told| &told.step))
    }

    pub(crate) fn new(action: Action) -> Self {
        Self { action, setting: None, verify: Verify::Accepted, reactions: Vec::new(), undo: Undo::Nothing }
    }

    pub(crate) fn on(&mut self, errno: Errno, reaction: Reaction) -> &mut Self {
        self.reactions.push((errno, reaction));
        self
    }

    pub(crate) fn verify(&mut self, verify: Verify) -> &mut Self {
        self.verify = verify;
        self
    }

    /// Whether it is a default that nobody asked for, and needs no controller to be enabled.
    pub(crate) fn is_optional(&self) -> bool {
        self.reaction(Errno::NOENT) == Some(Reaction::Skip)
    }

    pub(crate) fn reaction(&self, errno: Errno) -> Option<Reaction> {
        self.reactions.iter().find(|(known, _)| *known == errno).map(|(_, reaction)| *reaction)
    }
}

/// An ordered list of steps that create a cgroup or change one, and what cannot be done on this host.
///
/// `Display` is for people, a line for each step, with control characters [escaped](crate::terminal); the serde form is the
/// JSON of `ringfence plan`.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) host: Host,
    pub(crate) steps: Vec<Step>,
    pub(crate) report: Report,
    /// What is done about what only shows when the plan is carried out.
    pub(crate) unsupported: Unsupported,
    /// A unit of systemd carries the cgroup.
    pub(crate) by_systemd: bool,
    /// The cgroup that is made or changed, below the root of each hierarchy.
    pub(crate) path: Arc<str>,
    /// The mark of the directories that are made.
    pub(crate) mark: Option<Arc<str>>,
    /// The cgroup may be inside another sandbox's.
    pub(crate) allow_nested: bool,
}

impl Plan {
    /// The steps in the order in which they are carried out.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What this host cannot do.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Goes on with the steps of another plan that are not among these: ancestors in common are made once.
    pub(crate) fn append(&mut self, other: Self) {
        let owned =
            |(hierarchy, path, file): (usize, &str, &str)| (hierarchy, path.to_owned(), file.to_owned());
        let places: HashSet<_> = self.steps.iter().map(|step| owned(step.place())).collect();
        for step in other.steps {
            // Few places are in common, so that few steps are compared with all others.
            if !(places.contains(&owned(step.place())) && self.steps.contains(&step)) {
                self.steps.push(step);
            }
        }
        self.report.add_new(&other.report);
    }

    /// Every write to a file, those too that systemd is told.
    pub(crate) fn writes(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().flat_map(Step::and_told)
    }

    /// What the interface files of the cgroup at `path` are told, all writes to one file together; without devices.
    pub(crate) fn values(&self, path: &str) -> BTreeMap<(usize, &str), String> {
        let mut values = BTreeMap::<_, String>::new();
        for step in self.writes() {
            if let Action::Write { dir, file, value } = &step.action
                && *dir.path == *path
                && step.setting.as_ref().is_some_and(|setting| setting != "devices")
            {
                let told = values.entry((dir.hierarchy, file.as_ref())).or_default();
                *told = merged(file, told, value);
            }
        }
        values
    }

    /// The step's full path, as printed.
    fn path(&self, step: &Step) -> PathBuf {
        match &step.action {
            Action::MakeDir { dir, .. } | Action::DeviceFilter { dir, .. } | Action::Delegate { dir, .. } => {
                dir.full(&self.host)
            }
            Action::EnableControllers { dir, .. } => dir.full(&self.host).join("cgroup.subtree_control"),
            Action::Write { dir, file, .. } => dir.full(&self.host).join(file.as_ref()),
            Action::StartUnit { path, .. } => printed(&self.host, path),
            Action::SetProperties { told, .. } => {
                let dir = told.iter().find_map(|told| match &told.step.action {
                    Action::Write { dir, .. } => Some(&*dir.path),
                    _ => None,
                });
                printed(&self.host, dir.unwrap_or_default())
            }
        }
    }
}

impl Step {
    /// The properties of a step that talks to systemd, each once.
    pub(crate) fn properties(&self) -> Vec<Property> {
        let (mut properties, told) = match &self.action {
            Action::StartUnit { properties, told, .. } => (properties.clone(), told.as_slice()),
            Action::SetProperties { told, .. } => (Vec::new(), told.as_slice()),
            _ => Default::default(),
        };
        for told in told {
            tell(&mut properties, told.properties.iter().cloned());
        }
        properties
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let path = self.path(step);
            let path = path.to_string_lossy();
            let path = Escaped(&path);
            match &step.action {
                Action::MakeDir { .. } => writeln!(f, "make_dir            {path}")?,
                Action::EnableControllers { required, wanted, .. } => {
                    write!(f, "enable_controllers  {path} <-")?;
                    for controller in required.iter().chain(wanted) {
                        write!(f, " +{controller}")?;
                    }
                    writeln!(f)?;
                }
                Action::Write { value, .. } => {
                    writeln!(f, "write               {path} <- {}", Escaped(value.trim_end()))?
                }
                Action::DeviceFilter { policy, .. } => {
                    writeln!(f, "device_filter       {path} ({} exceptions)", policy.exceptions().count())?;
                }
                Action::StartUnit { unit, .. } => {
                    writeln!(f, "start_unit          {} at {path}", Escaped(unit))?;
                    for property in step.properties() {
                        writeln!(f, "                    {}", Escaped(&property.to_string()))?;
                    }
                }
                Action::SetProperties { unit, .. } => {
                    writeln!(f, "set_properties      {}", Escaped(unit))?;
                    for property in step.properties() {
                        writeln!(f, "                    {}", Escaped(&property.to_string()))?;
                    }
                }
                Action::Delegate { owner, .. } => writeln!(f, "delegate            {path} to {owner}")?,
            }
        }
        self.report.lines().iter().try_for_each(|line| writeln!(f, "report              {line}"))
    }
}

#[derive(Serialize)]
struct HostSummary {
    mode: Mode,
    systemd: bool,
}

/// A step beside the plan that knows the host's paths.
struct Printed<'a>(&'a Plan, &'a Step);

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(plan, step) = self;
        let mut map = serializer.serialize_map(None)?;
        let op = match &step.action {
            Action::MakeDir { .. } => "make_dir",
            Action::EnableControllers { .. } => "enable_controllers",
            Action::Write { .. } => "write",
            Action::DeviceFilter { .. } => "device_filter",
            Action::StartUnit { .. } => "start_unit",
            Action::SetProperties { .. } => "set_properties",
            Action::Delegate { .. } => "delegate",
        };
        map.serialize_entry("op", op)?;
        if let Some(setting) = &step.setting {
            map.serialize_entry("setting", setting)?;
        }
        map.serialize_entry("path", &plan.path(step))?;
        match &step.action {
            Action::MakeDir { .. } => {}
            Action::EnableControllers { required, wanted, .. } => {
                let names: Vec<_> =
                    required.iter().chain(wanted).map(|controller| controller.as_str()).collect();
                map.serialize_entry("controllers", &names)?;
            }
            // A newline alone empties a file.
            Action::Write { value, .. } if value == "\n" => map.serialize_entry("value", "")?,
            Action::Write { value, .. } => map.serialize_entry("value", value)?,
            Action::DeviceFilter { policy, .. } => {
                map.serialize_entry("default", &policy.default_verdict())?;
                map.serialize_entry("exceptions", &policy.exceptions().collect::<Vec<_>>())?;
            }
            Action::StartUnit { unit, .. } | Action::SetProperties { unit, .. } => {
                map.serialize_entry("unit", unit)?;
                if let Action::StartUnit { slice, .. } = &step.action {
                    map.serialize_entry("slice", slice)?;
                }
                let properties = step.properties();
                let by_name = properties.iter().map(|property| (property.name, &property.value));
                map.serialize_entry("properties", &by_name.collect::<BTreeMap<_, _>>())?;
            }
            Action::Delegate { owner, .. } => {
                map.serialize_entry("uid", &owner.uid)?;
                map.serialize_entry("gid", &owner.gid)?;
            }
        }
        map.end()
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("host", &HostSummary { mode: self.host.mode, systemd: self.host.systemd })?;
        map.serialize_entry("driver", if self.by_systemd { "systemd" } else { "cgroupfs" })?;
        let steps: Vec<_> = self.steps.iter().map(|step| Printed(self, step)).collect();
        map.serialize_entry("steps", &steps)?;
        map.serialize_entry("report", &self.report)?;
        map.end()
    }
}
