//! The steps while they are being thought out, and what they are made from.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::{Action, Dir, Reaction, Step, Undo, Verify, Want};
use crate::host::{Controller, Hierarchy, Host, Version};
use crate::interface::restoring;
use crate::report::Report;
use crate::resources::Limit;

/// What must be read before planning.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadSet {
    /// Files of the cgroup itself and of its parts: hierarchy, path and file.
    pub(crate) files: BTreeSet<(usize, String, Cow<'static, str>)>,
    /// Those of them that are written then.
    pub(crate) written: BTreeSet<(usize, String, Cow<'static, str>)>,
    /// v1 cpusets: these two files of the nearest ancestors, up to the first where both have a value.
    pub(crate) inherited: Option<(usize, [&'static str; 2])>,
}

impl ReadSet {
    pub(super) fn extend(&mut self, other: Self) {
        self.files.extend(other.files);
        self.written.extend(other.written);
        self.inherited = self.inherited.or(other.inherited);
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was read: by hierarchy, path and file. Of a cgroup that is yet to be made, nothing is: the kernel's defaults hold.
#[derive(Debug, Default, Clone)]
pub(crate) struct Observed {
    files: Vec<Found>,
    /// The ancestors' cpusets (v1) were looked at.
    inherited: bool,
}

#[derive(Debug, Clone)]
struct Found {
    hierarchy: usize,
    path: String,
    file: Cow<'static, str>,
    /// `None`: there is no such file.
    content: Option<String>,
}

impl Observed {
    pub(crate) fn insert(
        &mut self,
        hierarchy: usize,
        path: &str,
        file: Cow<'static, str>,
        content: Option<String>,
    ) {
        match self.files.iter_mut().find(|found| found.is(hierarchy, path, &file)) {
            Some(found) => found.content = content,
            None => self.files.push(Found { hierarchy, path: path.to_owned(), file, content }),
        }
    }

    pub(crate) fn inherited_is_known(&mut self) {
        self.inherited = true;
    }

    /// The same when these steps were taken, for what is made below.
    pub(super) fn after(&self, steps: &[Step]) -> Self {
        let mut then = self.clone();
        for step in steps {
            if let Action::Write { dir, file, value } = &step.action {
                then.insert(dir.hierarchy, &dir.path, file.clone(), Some(value.clone()));
                then.inherited_is_known();
            }
        }
        then
    }

    pub(super) fn get(&self, hierarchy: usize, path: &str, file: &str) -> Option<&str> {
        self.look_up(hierarchy, path, file)?.as_deref()
    }

    fn look_up(&self, hierarchy: usize, path: &str, file: &str) -> Option<&Option<String>> {
        self.files.iter().find(|found| found.is(hierarchy, path, file)).map(|found| &found.content)
    }
}

impl Found {
    fn is(&self, hierarchy: usize, path: &str, file: &str) -> bool {
        self.hierarchy == hierarchy && self.file == file && self.path == path
    }
}

/// The steps while they are being thought out.
pub(super) struct Draft<'a> {
    pub(super) host: &'a Host,
    /// What `unified` says of fields is said by the fields here.
    pub(super) want: &'a Want<'a>,
    /// `unified` as it was given.
    pub(super) named: &'a BTreeMap<String, String>,
    pub(super) observed: &'a Observed,
    pub(super) steps: Vec<Step>,
    pub(super) report: Report,
    /// What was looked for and not observed yet.
    missing: RefCell<ReadSet>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        host: &'a Host,
        want: &'a Want<'a>,
        named: &'a BTreeMap<String, String>,
        observed: &'a Observed,
    ) -> Self {
        let (steps, report, missing) = Default::default();
        Self { host, want, named, observed, steps, report, missing }
    }

    /// The steps, the report, and what was looked for and not observed yet.
    pub(super) fn into_parts(self) -> (Vec<Step>, Report, ReadSet) {
        (self.steps, self.report, self.missing.into_inner())
    }

    /// The name by which a v2 file's value was asked for.
    pub(super) fn setting(&self, file: &str, field: &'static str) -> Cow<'static, str> {
        if self.named.contains_key(file) { format!("unified.{file}").into() } else { field.into() }
    }

    /// Where a controller's files are.
    pub(super) fn place_of(&self, controller: Controller) -> Option<(usize, Version)> {
        self.hierarchy_of(controller).map(|(index, hierarchy)| (index, hierarchy.version))
    }

    /// The hierarchy of a controller, if the cgroup can be in it.
    pub(super) fn hierarchy_of(&self, controller: Controller) -> Option<(usize, &'a Hierarchy)> {
        self.host.hierarchy_of(controller).filter(|(index, _)| self.takes(*index))
    }

    /// The v2 hierarchy, if the cgroup can be in it.
    pub(super) fn unified(&self) -> Option<(usize, &'a Hierarchy)> {
        self.host.unified().filter(|(index, _)| self.takes(*index))
    }

    /// Whether the cgroup can be in a hierarchy.
    pub(super) fn takes(&self, hierarchy: usize) -> bool {
        self.host.takes(hierarchy, self.want.path)
            && (self.want.threads_of.is_none() || self.host.has_parts(hierarchy))
    }

    /// Why there is no place for a controller.
    pub(super) fn why_without(&self, controller: Controller) -> String {
        self.host.why_without(controller, self.want.path)
    }

    pub(super) fn leaf(&self, hierarchy: usize) -> Dir {
        Dir::new(hierarchy, self.want.path)
    }

    /// What the file of the cgroup holds now; `None` for a new cgroup, and where there is no such file.
    pub(super) fn now(&self, hierarchy: usize, file: &str) -> Option<&str> {
        if self.want.create {
            return None;
        }
        let known = self.look_up(hierarchy, file);
        if known.is_none() {
            let file = (hierarchy, self.want.path.to_owned(), file.to_owned().into());
            self.missing.borrow_mut().files.insert(file);
        }
        known?.as_deref()
    }

    fn look_up(&self, hierarchy: usize, file: &str) -> Option<&Option<String>> {
        self.observed.look_up(hierarchy, self.want.path, file)
    }

    /// Whether the file of the cgroup is there, as far as is known; `None` also where it is yet to be looked at.
    pub(super) fn has(&self, hierarchy: usize, file: &str) -> Option<bool> {
        self.look_up(hierarchy, file).map(Option::is_some)
    }

    /// Whether the file of the cgroup will be looked at.
    pub(super) fn is_missing(&self, hierarchy: usize, file: &str) -> bool {
        let key = (hierarchy, self.want.path.to_owned(), Cow::Owned(file.to_owned()));
        self.missing.borrow().files.contains(&key)
    }

    /// A number that the file holds now; `None` too where it says `max` or -1.
    pub(super) fn now_number(&self, hierarchy: usize, file: &str) -> Option<u64> {
        self.now(hierarchy, file)?.parse().ok()
    }

    /// The cpusets of the ancestors are needed (v1).
    pub(super) fn need_inherited(&self, hierarchy: usize, files: [&'static str; 2]) {
        if !self.observed.inherited {
            self.missing.borrow_mut().inherited = Some((hierarchy, files));
        }
    }

    pub(super) fn push(&mut self, step: Step) -> &mut Step {
        self.steps.push(step);
        let last = self.steps.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "it was pushed on the line before")]
        &mut self.steps[last]
    }

    /// Writes a file of the cgroup; undone by writing what it holds now.
    pub(super) fn write(
        &mut self,
        hierarchy: usize,
        setting: impl Into<Cow<'static, str>>,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> &mut Step {
        let (file, value) = (file.into(), value.to_string());
        if !self.want.create && self.look_up(hierarchy, &file).is_none() {
            let key = (hierarchy, self.want.path.to_owned(), file.clone());
            self.missing.borrow_mut().written.insert(key);
        }
        let undo = match self.now(hierarchy, &file) {
            Some(now) => Undo::write(&file, restoring(&file, &value, now)),
            None if self.want.create => Undo::Nothing,
            None => Undo::AsFound,
        };
        let dir = self.leaf(hierarchy);
        let step = self.push(Step::new(Action::Write { dir, file, value }));
        step.setting = Some(setting.into());
        step.undo = undo;
        step
    }

    /// Reports every setting of a section: `cpu.quota`, `cpu.period`.
    pub(super) fn report_all(&mut self, name: &str, section: &impl Serialize, why: &str) {
        // What can be held can be written as JSON.
        for (key, value) in
            serde_json::to_value(section).ok().as_ref().and_then(Value::as_object).into_iter().flatten()
        {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.report.add(format!("{name}.{key}"), value, why.to_owned());
        }
    }

    /// Reports every setting of a section for which this host has no controller.
    pub(super) fn report_without<T: Serialize + Default + PartialEq>(
        &mut self,
        controller: Controller,
        name: &str,
        section: &T,
    ) {
        if *section != T::default() {
            self.report_all(name, section, &self.why_without(controller));
        }
    }
}

/// A limit on what runs already is read back; nothing runs in a new cgroup.
pub(super) fn lowered(want: &Want<'_>, limit: Limit, allowed: &'static str) -> Verify {
    match limit {
        Limit::Value(_) if !want.create => Verify::ReadsBack { allowed },
        _ => Verify::Accepted,
    }
}

pub(super) const NOT_VALID_HERE: Reaction = Reaction::Explain(
    "the kernel does not take this value here, beside the values of the cgroup's parent and children",
);

/// v1's word for no limit.
pub(super) fn minus_one(limit: Limit) -> String {
    match limit {
        Limit::Value(value) => value.to_string(),
        Limit::Max => "-1".to_owned(),
    }
}
