//! Repairing a sandbox of which directories are missing in some hierarchy.

use super::{Part, Sandbox, open};
use crate::cgroup::Cgroup;
use crate::devices::filter::Earlier;
use crate::driver::cgroupfs::carry_out_and;
use crate::driver::dirs::Dirs;
use crate::driver::observe::plan_on;
use crate::driver::systemd::Processes;
use crate::error::{Error, Result};
use crate::kernel::proc;
use crate::plan::{Action, Dir, Want};
use crate::report::Report;
use crate::sandbox::begun::UNRECORDED;

impl Sandbox {
    /// Makes the directories anew that are missing in some hierarchy (see [`Status::Damaged`](crate::Status::Damaged)), with
    /// the limits and the device policy of the sandbox, and moves its processes and threads into them. A directory that was
    /// renamed gets its name back (v1). Does nothing to a sandbox that is whole.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if nothing of it is left;
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if somebody else made a cgroup in its place.
    pub fn repair(&self) -> Result<Report> {
        let mut report = self.repair_own()?;
        if let Some(apart) = &self.apart {
            report.append(apart.repair_own()?);
        }
        Ok(report)
    }

    fn repair_own(&self) -> Result<Report> {
        let state = self.locked();
        let cgroup = self.present_or_not_found(&state)?;
        for (dir, _) in cgroup.renamed() {
            let name = state.cgroup.rsplit_once('/').map_or(&*state.cgroup, |(_, name)| name);
            let above = dir.parent().map(|above| self.host.open(above.hierarchy, &above.path));
            let renamed = above.map(|above| above.and_then(|above| above.rename(dir.name(), name)));
            renamed.transpose().map_err(|errno| {
                Error::kernel("cannot give the directory its name back", dir.full(&self.host), errno)
            })?;
        }
        let cgroup = open(&self.host, &state)?.unwrap_or(cgroup);
        let wholes = cgroup.missing();
        let mut missing = cgroup.damage(state.parts.values().map(String::as_str));
        for index in wholes.iter().filter(|index| self.host.has_parts(**index)) {
            missing.extend(state.parts.values().map(|path| Dir::new(*index, path.as_str())));
        }
        if missing.is_empty() {
            return Ok(Report::default());
        }
        // A repair that died between making a directory and marking it.
        missing.iter().for_each(|dir| _ = Cgroup::remove_unfinished(&self.host, &dir.path));
        let anew = state.anew();
        // As files, also where systemd carries the rest: it writes the same when it is told something the next time.
        let want = Want { unit: None, ..state.want(&anew) };
        let mut dirs = Dirs::new(&self.host, Vec::new());
        let mut plan = plan_on(&self.host, &mut dirs, &want)?;
        plan.steps.retain(|step| match &step.action {
            Action::MakeDir { dir, .. } | Action::Write { dir, .. } | Action::Delegate { dir, .. } => {
                missing.contains(dir) || wholes.contains(&dir.hierarchy)
            }
            Action::EnableControllers { dir, .. } => missing.iter().any(|one| one.hierarchy == dir.hierarchy),
            Action::DeviceFilter { .. } | Action::StartUnit { .. } | Action::SetProperties { .. } => false,
        });
        let done =
            carry_out_and(&plan, &mut dirs, Earlier::Unknown, Processes::NONE, UNRECORDED, &mut |_| Ok(()))?;
        let default = state.parts.get(&Part::Overhead);
        for pid in cgroup.processes()? {
            for index in &wholes {
                let path = default.filter(|_| self.host.has_parts(*index)).unwrap_or(&state.cgroup);
                let dir = Dir::new(*index, path.as_str());
                let joined = dirs.get(&dir).and_then(|open| open.join(pid));
                match joined {
                    Ok(()) => {}
                    Err(_) if !proc::is_running(pid) => {}
                    Err(errno) => {
                        let why = "repaired, but this process cannot be moved into it";
                        return Err(Error::kernel(why, dir.full(&self.host), errno)
                            .with_setting("pid")
                            .with_value(pid));
                    }
                }
            }
        }
        let mut report = done.report;
        let made: Vec<_> = missing.iter().map(|dir| dir.full(&self.host).display().to_string()).collect();
        report.note("repair", made.join(", "), "made anew, with the limits of the sandbox");
        let whole = open(&self.host, &state)?;
        *self.cgroup.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = whole;
        let has_threads = !(state.vcpus.is_empty() && state.iothreads.is_empty());
        drop(state);
        if has_threads {
            report.append(self.place_again()?);
        }
        Ok(report)
    }
}
