//! The steps while they are being thought out, and what they are made from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::observed::{FileAt, Observed};
use super::{Action, Dir, Reaction, Step, Undo, Verify, Want};
use crate::host::{Controller, Hierarchy, Host, Version};
use crate::interface::restoring;
use crate::report::Report;
use crate::resources::Limit;

/// The steps while they are being thought out.
pub(super) struct Draft<'a> {
    pub(super) host: &'a Host,
    /// Of the cgroup.
    path: Arc<str>,
    /// What `unified` says of fields is said by the fields here.
    pub(super) want: &'a Want<'a>,
    /// `unified` as it was given.
    pub(super) named: &'a BTreeMap<String, String>,
    observed: &'a Observed<'a>,
    pub(super) steps: Vec<Step>,
    pub(super) report: Report,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        host: &'a Host,
        want: &'a Want<'a>,
        named: &'a BTreeMap<String, String>,
        observed: &'a Observed<'a>,
    ) -> Self {
        let report = Report::default();
        // A new one takes tens of steps, most of them for its devices.
        let steps = if want.create { Vec::with_capacity(64) } else { Vec::new() };
        Self { host, path: want.path.into(), want, named, observed, steps, report }
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
        Dir::new(hierarchy, Arc::clone(&self.path))
    }

    /// What the file of the cgroup holds now; `None` for a new cgroup, and where there is no such file.
    pub(super) fn now(&self, hierarchy: usize, file: &str) -> Option<Rc<str>> {
        self.look(hierarchy, file, false)
    }

    /// The same of a file that is written, as a rule.
    pub(super) fn now_to_write(&self, hierarchy: usize, file: &str) -> Option<Rc<str>> {
        self.look(hierarchy, file, true)
    }

    fn look(&self, hierarchy: usize, file: &str, to_write: bool) -> Option<Rc<str>> {
        if self.want.create {
            return None;
        }
        self.observed.look(FileAt { hierarchy, path: self.want.path, name: file, to_write })
    }

    /// A number that the file holds now; `None` too where it says `max` or -1.
    pub(super) fn now_number(&self, hierarchy: usize, file: &str) -> Option<u64> {
        self.now(hierarchy, file)?.parse().ok()
    }

    /// The same of a file that is written, as a rule.
    pub(super) fn number_to_write(&self, hierarchy: usize, file: &str) -> Option<u64> {
        self.now_to_write(hierarchy, file)?.parse().ok()
    }

    /// The number in a file of the cgroup that the plan does not write.
    pub(super) fn number(&self, hierarchy: usize, file: &str) -> Option<u64> {
        self.now(hierarchy, file)?.trim().parse().ok()
    }

    /// Whether a file of the cgroup was looked at, and is there.
    pub(super) fn has(&self, hierarchy: usize, file: &str) -> bool {
        self.observed.has(&FileAt { hierarchy, path: self.want.path, name: file, to_write: false })
    }

    /// What the file of an ancestor holds.
    pub(super) fn above(&self, hierarchy: usize, path: &str, file: &str) -> Option<Rc<str>> {
        self.observed.look(FileAt { hierarchy, path, name: file, to_write: false })
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
        let undo = match self.now_to_write(hierarchy, &file) {
            Some(now) => Undo::write(&file, restoring(&file, &value, &now)),
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
