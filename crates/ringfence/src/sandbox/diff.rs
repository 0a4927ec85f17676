//! What is wanted against what is there.

use std::os::fd::AsFd;

use rustix::io::Errno;
use serde::Serialize;

use super::{Part, Sandbox, Status};
use crate::cgroup::Cgroup;
use crate::devices::{DevicePolicy, filter, program, transition};
use crate::error::{Error, ErrorKind, Result};
use crate::interface::{Lines, holds, is_keyed};
use crate::plan::{self, Action, DEVICES_LIST, Dir, Verify};

/// A value that is not as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The interface file, such as `memory.max`; `devices` for what may be opened.
    pub key: String,
    /// What is wanted; of a file with a line for each device, the line.
    pub want: String,
    /// What is there, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub have: Option<String>,
}

impl Sandbox {
    /// Compares what is wanted with what the kernel holds: sizes in whole pages, CPU sets as sets, the device policy as the
    /// program or list that it becomes. Empty if nothing differs. What this host cannot do is not compared: it is in the
    /// report of the state.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the cgroup was removed.
    pub fn diff(&self) -> Result<Vec<Difference>> {
        let mut differences = self.own_diff()?;
        if let Some(apart) = &self.apart
            && apart.own_status()? != Status::Planned
        {
            differences.extend(apart.own_diff()?.into_iter().map(|other| in_part(Part::Overhead, other)));
        }
        Ok(differences)
    }

    fn own_diff(&self) -> Result<Vec<Difference>> {
        let state = self.state();
        let cgroup = &*self.cgroup()?;
        let mut plan = plan::plan(&cgroup.host, &state.want(&state.anew()), plan::UNREAD)?;
        let is_reported = |setting: &str| state.report.unsupported().any(|line| line.setting == setting);
        plan.steps.retain(|step| !step.setting.as_deref().is_some_and(is_reported));
        for step in &mut plan.steps {
            if let Action::StartUnit { told, .. } = &mut step.action {
                told.retain(|told| !told.step.setting.as_deref().is_some_and(is_reported));
            }
        }
        let mut differences = Vec::new();
        let values = plan.values(&state.cgroup);
        for ((hierarchy, file), value) in &values {
            differences.extend(file_differs(cgroup, &Dir::new(*hierarchy, &*state.cgroup), file, value)?);
        }
        for (part, path) in &state.parts {
            let seat = cgroup.seat(path)?;
            for ((hierarchy, file), value) in plan.values(path) {
                let found = file_differs(&seat, &Dir::new(hierarchy, &**path), file, &value)?;
                differences.extend(found.into_iter().map(|other| in_part(*part, other)));
            }
        }
        // The kernel shows another weight while the cgroup is idle.
        if values.iter().any(|((_, file), value)| *file == "cpu.idle" && value == "1") {
            differences.retain(|difference| !matches!(difference.key.as_str(), "cpu.weight" | "cpu.shares"));
        }
        for step in plan.writes() {
            differences.extend(match (&step.action, &step.verify) {
                // Many writes make one list; the last of them says which.
                (Action::Write { dir, .. }, Verify::DeviceList(policy)) => device_list(cgroup, dir, policy)?,
                (Action::DeviceFilter { dir, policy, .. }, _) => device_filter(cgroup, dir, policy)?,
                _ => None,
            });
        }
        Ok(differences)
    }
}

fn in_part(part: Part, other: Difference) -> Difference {
    Difference { key: format!("{part}/{}", other.key), ..other }
}

/// Of a file with a line for each device: those lines that differ.
fn file_differs(cgroup: &Cgroup, dir: &Dir, file: &str, value: &str) -> Result<Vec<Difference>> {
    let now = read(cgroup, dir, file)?;
    let differs =
        |line: &&str| !now.as_deref().is_some_and(|now| holds(file, line, now, cgroup.host.page_size));
    let line_of = |line: &str| Lines::parse(now.as_deref()?).line(line.split_whitespace().next()?);
    let difference = |line: &str| {
        let have = if is_keyed(file) { line_of(line) } else { now.clone() };
        Difference { key: file.to_owned(), want: line.to_owned(), have }
    };
    Ok(value.lines().filter(differs).map(difference).collect())
}

/// v2's program.
fn device_filter(cgroup: &Cgroup, dir: &Dir, policy: &DevicePolicy) -> Result<Option<Difference>> {
    let installed = match cgroup.opened(dir) {
        Some(open) => {
            let open = open.descriptor().map_err(|errno| dir.not_opened(&cgroup.host, errno))?;
            filter::is_installed(open.as_fd(), &program::compile(policy))?
        }
        None => false,
    };
    let (key, want) = ("devices".to_owned(), policy.to_string());
    Ok((!installed).then_some(Difference { key, want, have: None }))
}

/// v1's list of devices. Under default allow it shows nothing more.
fn device_list(cgroup: &Cgroup, dir: &Dir, policy: &DevicePolicy) -> Result<Option<Difference>> {
    let now = read(cgroup, dir, DEVICES_LIST)?;
    let shows = |now: &str| transition::parse_devices_list(now.as_bytes()).map(|list| list.shows(policy));
    if now.as_deref().map(shows).transpose()? == Some(true) {
        return Ok(None);
    }
    let have = now.map(|now| now.replace('\n', ", "));
    Ok(Some(Difference { key: "devices".to_owned(), want: policy.to_string(), have }))
}

/// What a file holds, if there is one.
fn read(cgroup: &Cgroup, dir: &Dir, file: &str) -> Result<Option<String>> {
    let Some(open) = cgroup.opened(dir) else { return Ok(None) };
    match open.read(file) {
        Ok(now) => Ok(Some(now)),
        Err(Errno::NOENT | Errno::OPNOTSUPP) if open.has("cgroup.procs") => Ok(None),
        Err(Errno::NOENT | Errno::NODEV) => {
            let gone = Error::new(ErrorKind::NotFound, "the cgroup was removed");
            Err(gone.with_path(dir.full(&cgroup.host)))
        }
        Err(errno) => {
            let path = dir.full(&cgroup.host).join(file);
            Err(Error::kernel("cannot read what is in force", path, errno))
        }
    }
}
