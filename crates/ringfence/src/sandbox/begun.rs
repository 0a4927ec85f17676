//! A change that was begun: recorded before the kernel is changed, so that whoever comes after a process that died at it can
//! take it back.

use std::collections::BTreeSet;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Sandbox, State};
use crate::cgroup::Cgroup;
use crate::driver::dirs::Dirs;
use crate::driver::undo::Origin;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::interface::holds;
use crate::path::Subpath;
use crate::plan::{Action, Dir, Plan, Undo, Unsupported, properties_of};
use crate::report::Report;
use crate::systemd::property::tell;

/// Is told what is about to be changed, and records it; what cannot be recorded is not begun.
pub(crate) type Ahead<'a> = Option<&'a dyn Fn(Begun) -> Result<()>>;

/// For a change that its caller can repeat or take back by other means.
pub(crate) const UNRECORDED: Ahead<'static> = None;

/// What takes a change back that was begun.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Begun {
    /// Files and what they held, in the order in which that is to be written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<Held>,
    /// What may be opened was about to change: it becomes again what the state says.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    devices: bool,
    /// Processes that were about to join, and where they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    processes: Vec<Origin>,
}

/// What a file held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Held {
    /// What the hierarchy is called in `/proc/PID/cgroup`; `""` is v2.
    hierarchy: String,
    path: String,
    file: String,
    value: String,
}

impl Begun {
    /// Of a plan that is about to be carried out.
    pub(crate) fn of(plan: &Plan, host: &Host) -> Self {
        let mut begun = Self::default();
        for step in plan.writes() {
            match (&step.action, &step.undo) {
                (Action::DeviceFilter { .. }, _) => begun.devices = true,
                _ if step.setting.as_deref() == Some("devices") => begun.devices = true,
                (Action::Write { dir, .. }, Undo::Write(writes)) => {
                    let writes = writes.iter().map(|(file, value)| (file.as_ref(), value.as_str()));
                    begun.add(Self::of_file(host, dir, writes));
                }
                _ => {}
            }
        }
        begun
    }

    /// Of the writes that take one step back.
    pub(crate) fn of_file<'a>(
        host: &Host,
        dir: &Dir,
        writes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let Some(hierarchy) = host.hierarchies.get(dir.hierarchy) else { return Self::default() };
        let held = |(file, value): (&str, &str)| Held {
            hierarchy: hierarchy.called(),
            path: dir.path.to_string(),
            file: file.to_owned(),
            value: value.to_owned(),
        };
        Self { values: writes.into_iter().map(held).collect(), ..Self::default() }
    }

    /// Of processes that are about to join.
    pub(crate) fn of_processes(pids: &[u32]) -> Result<Self> {
        let processes = pids.iter().map(|pid| Origin::of(*pid)).collect::<Result<_>>()?;
        Ok(Self { processes, ..Self::default() })
    }

    /// Refuses files that are not of these cgroups or below them: what is there is written to.
    pub(super) fn check(&self, cgroups: &[&str]) -> Result<()> {
        let is_below = |path: &str, cgroup: &&str| {
            path.strip_prefix(cgroup).is_some_and(|below| below.is_empty() || below.starts_with('/'))
        };
        for Held { path, file, .. } in &self.values {
            let is_inside = cgroups.iter().any(|cgroup| !cgroup.is_empty() && is_below(path, cgroup));
            if !is_inside || !Subpath::is_clean(path) || file.contains('/') {
                let why = "a file of the sandbox: what it held before a change that was interrupted";
                let error = Error::new(ErrorKind::State, why).with_setting("begun");
                return Err(error.with_value(format!("{path}/{file}")));
            }
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is begun later is taken back earlier.
    pub(crate) fn add(&mut self, later: Self) {
        self.values.splice(0..0, later.values);
        self.devices |= later.devices;
        self.processes.splice(0..0, later.processes);
    }
}

impl Sandbox {
    /// Whether a process died while it changed the sandbox: [`Sandbox::settle`] takes back what it had done by then.
    pub fn is_unsettled(&self) -> bool {
        self.known().begun.is_some()
    }

    /// Takes back what a process had done of a change at which it died. Whoever holds the lock of the sandbox calls this
    /// before anything else; then, or without such a change, every limit is what the state says.
    ///
    /// # Errors
    /// What could not be taken back; the state still says so then, and the next call tries again.
    pub fn settle(&self) -> Result<Report> {
        let before = self.state();
        let Some(begun) = before.begun.clone() else { return Ok(Report::default()) };
        let mut report = Report::default();
        // A scope that has ended has taken everything along.
        let cgroup = self.present(&self.known())?;
        if let Some(cgroup) = &cgroup {
            for origin in &begun.processes {
                if let Err(errno) = origin.put_back(&self.host) {
                    let why = format!("this process stays inside: it cannot go back ({errno})");
                    report.note("pid", origin.pid, why);
                }
            }
            self.write_back(cgroup, &before, &begun.values, &mut report)?;
        }
        if begun.devices && cgroup.is_some() {
            report.append(self.put_back_devices(&before)?);
        }
        let mut state = self.locked();
        if let Some(cgroup) = &cgroup {
            // Kernels before 6.2 forget affinities when a cpuset changes.
            let vcpus = state.vcpus.clone();
            self.keep_pinned(cgroup, &mut state, &vcpus, &BTreeSet::new(), &mut report);
        }
        state.begun = None;
        Ok(report)
    }

    /// Goes back to a state from before a change, of which this is known.
    pub(super) fn go_back(&self, before: State, begun: Begun) -> Result<Report> {
        self.become_again(State { begun: Some(begun), ..before });
        self.settle()
    }

    fn become_again(&self, mut before: State) {
        if let (Some(apart), Some(theirs)) = (&self.apart, before.apart.take()) {
            apart.become_again(*theirs);
        }
        *self.locked() = before;
    }

    fn write_back(&self, cgroup: &Cgroup, state: &State, values: &[Held], report: &mut Report) -> Result<()> {
        let host = &self.host;
        let dir_of = |held: &Held| {
            let known = host.hierarchies.iter().position(|known| known.is_called(&held.hierarchy));
            known.map(|index| Dir::new(index, &*held.path))
        };
        if let Some(unit) = state.path.as_systemd().filter(|_| !values.is_empty()) {
            let mut properties = Vec::new();
            for held in values {
                let version = dir_of(held).map(|dir| host.version_of(dir.hierarchy));
                let is_whole = held.path == state.cgroup;
                let known = version.filter(|_| is_whole);
                tell(
                    &mut properties,
                    known
                        .and_then(|version| properties_of(host, version, &held.file, &held.value))
                        .unwrap_or_default(),
                );
            }
            let manager = host.manager()?;
            properties.retain(|property| !manager.lacks(property.name));
            if !properties.is_empty() {
                let _stopped = cgroup.stop_for_systemd(Unsupported::Report, report)?;
                manager.set(&unit.unit(), &properties)?;
                manager.settle()?;
            }
        }
        let mut dirs = Dirs::of(cgroup);
        let mut failed = None;
        for held in values {
            let Some(dir) = dir_of(held) else { continue };
            let written = dirs.get(&dir).and_then(|open| match open.read(&held.file) {
                Ok(now) if holds(&held.file, &held.value, &now, host.page_size) => Ok(()),
                _ => open.write(&held.file, &held.value),
            });
            match written {
                // A part, or a file, that is no more.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    let path = dir.full(host).join(&held.file);
                    let why = "a change was interrupted, and the old value cannot be put back";
                    failed.get_or_insert(Error::kernel(why, path, errno).with_value(&held.value));
                }
            }
        }
        failed.map_or(Ok(()), |error| Err(error.with_kind(ErrorKind::Kernel)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_begun_last_is_taken_back_first_and_is_read_back_from_a_state() {
        let of = |file: &str, value: &str| {
            let (hierarchy, path) = ("memory".to_owned(), "ringfence/vm1".to_owned());
            let held = Held { hierarchy, path, file: file.to_owned(), value: value.to_owned() };
            Begun { values: vec![held], ..Begun::default() }
        };
        let mut begun = of("memory.limit_in_bytes", "1");
        begun.add(of("memory.memsw.limit_in_bytes", "2"));
        begun.add(Begun { devices: true, ..Begun::default() });
        begun.add(Begun::of_processes(&[std::process::id()]).unwrap());
        let order: Vec<_> = begun.values.iter().map(|held| held.value.as_str()).collect();
        assert_eq!((order, begun.devices, begun.is_empty()), (vec!["2", "1"], true, false));
        assert!(begun.processes.iter().all(Origin::is_alive));
        let again: Begun = serde_json::from_value(serde_json::to_value(&begun).unwrap()).unwrap();
        assert_eq!(again, begun);
        assert_eq!(serde_json::to_value(Begun::default()).unwrap(), serde_json::json!({}));
        begun.check(&["ringfence/vm1"]).unwrap();
        assert!(
            begun.check(&["ringfence/vm", ""]).is_err() && of("../x", "1").check(&["ringfence/vm1"]).is_err()
        );
    }
}
