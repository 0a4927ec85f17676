//! The steps that systemd carries out.
//!
//! Its answer proves nothing: what the kernel refuses it passes over. So the files are read back.

use rustix::io::Errno;

use super::cgroupfs::Run;
use super::undo::Origin;
use crate::devices::transition;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Version;
use crate::interface::{holds, left_of};
use crate::plan::{Action, Dir, Reaction, Step, Told, Undo, Verify, properties_of};
use crate::report::Report;
use crate::resources::CpuSet;
use crate::systemd::property::{Property, Value, tell};
use crate::systemd::{Started, Told as Outcome};

/// The processes around which a unit is started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Processes<'a> {
    /// They run: if the unit cannot be had, they go back to where they came from.
    Running(&'a [u32]),
    /// They are ours and wait: if the unit cannot be had, they are killed.
    Waiting(&'a [u32]),
}

impl Processes<'_> {
    pub(crate) const NONE: Self = Self::Running(&[]);

    pub(crate) fn pids(&self) -> &[u32] {
        match self {
            Self::Running(pids) | Self::Waiting(pids) => pids,
        }
    }
}

impl Run<'_, '_> {
    pub(super) fn start_unit(
        &mut self,
        unit: &str,
        path: &str,
        properties: &[Property],
        told: &[Told],
    ) -> Result<()> {
        let manager = self.plan.host.manager()?;
        let processes = self.processes;
        let pids = processes.pids();
        let origins = pids.iter().map(|pid| Origin::of(*pid)).collect::<Result<Vec<_>>>()?;
        let description = properties.iter().find_map(|property| match &property.value {
            Value::Text(text) if property.name == "Description" => Some(text.as_str()),
            _ => None,
        });
        loop {
            let mut all = properties.to_vec();
            told.iter().for_each(|told| tell(&mut all, told.properties.iter().cloned()));
            all.retain(|property| !manager.lacks(property.name));
            let started = manager.start(unit, description.unwrap_or_default(), &all, pids);
            match started.map_err(|error| with_setting_of(error, told))? {
                Started::Anew => break,
                Started::Lacks(_) => {}
                Started::Already => {
                    let why = "it was started by another process at this moment";
                    let error = Error::new(ErrorKind::AlreadyExists, why);
                    return Err(error.with_setting("unit").with_value(unit));
                }
            }
        }
        self.log.started(unit, description.unwrap_or_default(), path, self.processes, origins);
        for pid in pids {
            self.join(path, *pid)?;
        }
        self.see_to_it(told)
    }

    pub(super) fn set_properties(&mut self, unit: &str, told: &[Told]) -> Result<()> {
        let manager = self.plan.host.manager()?;
        let back = self.back(told);
        loop {
            let mut all = Vec::new();
            told.iter().for_each(|told| tell(&mut all, told.properties.iter().cloned()));
            all.retain(|property| !manager.lacks(property.name));
            if all.is_empty() {
                break;
            }
            if let Outcome::All = manager.set(unit, &all).map_err(|error| with_setting_of(error, told))? {
                self.log.told(unit, back, told);
                break;
            }
        }
        self.see_to_it(told)
    }

    /// What takes a change back; of files that were not there before, what they hold now.
    fn back(&mut self, told: &[Told]) -> Vec<Property> {
        let mut back = Vec::new();
        for told in told {
            tell(&mut back, told.back.iter().cloned());
            if let (Undo::AsFound, Action::Write { dir, file, .. }) = (&told.step.undo, &told.step.action)
                && let Ok(Ok(now)) = self.open(dir).map(|open| open.read(file))
            {
                let version = self.plan.host.hierarchies.get(dir.hierarchy).map(|known| known.version);
                let found = version.and_then(|version| properties_of(&self.plan.host, version, file, &now));
                tell(&mut back, found.unwrap_or_default());
            }
        }
        back
    }

    /// A process is where systemd has put it when the job has ended. Where systemd makes no cgroups, it joins ours.
    fn join(&mut self, path: &str, pid: u32) -> Result<()> {
        let host = self.dirs.host;
        let now = Origin::of(pid)?;
        for (index, hierarchy) in host.hierarchies.iter().enumerate() {
            let dir = Dir::new(index, path);
            // A user's systemd has no say on v1, nor has the user.
            if now.is_in(host, &dir) || host.rootless && hierarchy.version == Version::V1 {
                continue;
            }
            let joined = self.dirs.get(&dir).and_then(|open| open.join(pid));
            joined.map_err(|errno| {
                Error::kernel("systemd did not put the process here, nor could it be", dir.full(host), errno)
                    .with_setting("pid")
                    .with_value(pid)
            })?;
        }
        Ok(())
    }

    /// Writes what systemd lacks properties for, and reads back what it was told.
    fn see_to_it(&mut self, told: &[Told]) -> Result<()> {
        let manager = self.plan.host.manager()?;
        for (position, one) in told.iter().enumerate() {
            if one.properties.iter().any(|property| manager.lacks(property.name)) {
                self.write_step(&one.step)?;
                continue;
            }
            let Some(step) = in_force(&one.step, told.iter().skip(position + 1)) else { continue };
            let mut found = self.found(&step)?;
            if found.is_some() {
                // It answers before it writes.
                manager.settle()?;
                found = self.found(&step)?;
            }
            if let Some(found) = found {
                self.differs(&step, &found)?;
            }
        }
        Ok(())
    }

    /// What a file holds instead of what it is to hold.
    fn found(&mut self, step: &Step) -> Result<Option<String>> {
        let Action::Write { dir, file, value } = &step.action else { return Ok(None) };
        let open = self.open(dir)?;
        let page_size = self.plan.host.page_size;
        let read = |file: &str| match open.read(file) {
            Ok(now) => Ok(now),
            Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok("nothing: there is no such file".to_owned()),
            Err(errno) => Err(Error::kernel("cannot read back", dir.full(self.dirs.host).join(file), errno)),
        };
        let now = read(file)?;
        let is_held = match &step.verify {
            Verify::DeviceList(policy) => transition::parse_devices_list(now.as_bytes())?.shows(policy),
            Verify::Within { file: effective, asked } => {
                let effective = read(effective)?.parse::<CpuSet>();
                holds(file, value, &now, page_size)
                    && effective.is_ok_and(|set| !set.is_empty() && set.is_subset(asked))
            }
            // The kernel shows another weight while the cgroup is idle.
            _ if file == "cpu.weight" && open.read("cpu.idle").as_deref() == Ok("1") => true,
            _ => holds(file, value, &now, page_size),
        };
        Ok((!is_held).then_some(now))
    }

    /// Of a value that is not there: an error, or a line in the report where it was to be feared.
    fn differs(&mut self, step: &Step, found: &str) -> Result<()> {
        let Action::Write { dir, file, value } = &step.action else { return Ok(()) };
        if step.is_optional() {
            return Ok(());
        }
        let unsupported = step.reactions.iter().find_map(|(_, reaction)| match reaction {
            Reaction::Unsupported(why) => Some(*why),
            _ => None,
        });
        let setting = step.setting.clone().unwrap_or_default();
        if let Some(why) = unsupported {
            let mut report = Report::default();
            report.add(setting, value, why);
            self.plan.unsupported.mind(&report)?;
            self.report.append(report);
            return Ok(());
        }
        let why = match &step.verify {
            Verify::Within { .. } => {
                format!("the kernel has {found:?}: the others are offline, or the parent does not have them")
            }
            _ => format!("systemd took it, and the kernel has {found:?} instead"),
        };
        let path = dir.full(self.dirs.host).join(file.as_ref());
        Err(Error::new(ErrorKind::Kernel, why).with_path(path).with_setting(setting).with_value(value.trim()))
    }
}

/// Adds to an error of systemd, which names a property, the setting and the value behind that property.
fn with_setting_of(error: Error, told: &[Told]) -> Error {
    let is_named = |told: &&Told| told.properties.iter().any(|one| error.message().contains(one.name));
    let Some(step) = told.iter().find(is_named).map(|told| &told.step) else { return error };
    match (&step.setting, &step.action) {
        (Some(setting), Action::Write { value, .. }) => {
            error.with_setting(setting.clone()).with_value(value.trim())
        }
        _ => error,
    }
}

/// What is to be in force of a step after those that were told with it and come behind it.
fn in_force<'a>(step: &Step, later: impl Iterator<Item = &'a Told>) -> Option<Step> {
    let mut step = step.clone();
    for other in later {
        if let (
            Action::Write { dir, file, value },
            Action::Write { dir: other_dir, file: other_file, value: other },
        ) = (&mut step.action, &other.step.action)
            && (&*dir, &*file) == (other_dir, other_file)
        {
            *value = left_of(file, value, other)?;
        }
    }
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_systemd_names_the_setting_behind_the_property() {
        let write = |file: &'static str, value: &str| {
            let dir = Dir::new(0, "x");
            Step::new(Action::Write { dir, file: file.into(), value: value.to_owned() })
        };
        let told = [("TasksMax", "pids.limit", "9"), ("MemoryMax", "memory.limit", "0")].map(
            |(name, setting, value)| {
                let mut step = write("f", value);
                step.setting = Some(setting.into());
                Told { step, properties: vec![Property::number(name, 0)], back: Vec::new() }
            },
        );
        let says = |words: &str| with_setting_of(Error::new(ErrorKind::Systemd, words.to_owned()), &told);
        let error = says("cannot change x.scope: systemd says: MemoryMax= is out of range");
        assert_eq!((error.setting(), error.value()), (Some("memory.limit"), Some("0")));
        assert_eq!(says("systemd says: no such interface").setting(), None);
    }
}
