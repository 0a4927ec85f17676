//! Carries the steps of a plan out, and undoes them in reverse when one fails.
//!
//! It knows nothing of OCI: which value goes where, in which order and back, is in the steps.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dirs::Dirs;
use super::refusal;
use super::systemd::Processes;
use super::undo::Log;
use crate::cgroup::mark;
use crate::devices::filter::{DeviceFilter, Earlier};
use crate::devices::{program, transition};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Version};
use crate::interface::restoring;
use crate::kernel::dir::{CgroupDir, write_once};
use crate::kernel::proc;
use crate::path::EVACUATED;
use crate::plan::{Action, DEVICES_LIST, Dir, OWNER, Owner, Plan, Reaction, Step, Undo, Verify};
use crate::report::Report;
use crate::resources::CpuSet;
use crate::sandbox::begun::{Ahead, Begun};

/// How often and for how long a refusal that goes away by itself is retried: 50 ms in all.
const RETRIES: u32 = 50;
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// The controllers that v2 enables even where processes are, if it can make the cgroup a thread root by that.
const THREADED: &[Controller] = &[Controller::Cpu, Controller::Cpuset, Controller::Pids];

/// What a plan that was carried out leaves.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) report: Report,
    /// Our device program, if the plan attached one.
    pub(crate) filter: Option<DeviceFilter>,
    /// Directories that were made, ancestors aside, and their inodes.
    pub(crate) made: Vec<(Dir, u64)>,
}

/// Carries the plan out, then does `also`; what takes it back goes `ahead`. On failure everything that the plan did is undone, and the error is that of the
/// step that failed, or of `also`.
///
/// A unit of systemd is started around `processes`.
pub(crate) fn carry_out_and(
    plan: &Plan,
    dirs: &mut Dirs<'_>,
    earlier: Earlier<'_>,
    processes: Processes<'_>,
    ahead: Ahead<'_>,
    also: &mut dyn FnMut(&mut Dirs<'_>) -> Result<()>,
) -> Result<Done> {
    if let Some(record) = ahead {
        let begun = Begun::of(plan, dirs.host);
        if !begun.is_empty() {
            record(begun)?;
        }
    }
    let (log, report, made) = Default::default();
    let mut run = Run { plan, dirs, earlier, processes, ahead, log, report, made };
    let Err(error) = run.steps().and_then(|()| also(run.dirs)) else {
        return Ok(Done { report: run.report, filter: run.log.into_filter(), made: run.made });
    };
    let Run { dirs, log, .. } = run;
    let failures = log.undo(dirs);
    if failures.is_empty() {
        return Err(error);
    }
    let what = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(error.with_source(Error::new(ErrorKind::Kernel, format!("and could not be undone: {what}"))))
}

pub(super) struct Run<'a, 'h> {
    pub(super) plan: &'a Plan,
    pub(super) dirs: &'a mut Dirs<'h>,
    earlier: Earlier<'a>,
    pub(super) processes: Processes<'a>,
    ahead: Ahead<'a>,
    pub(super) log: Log,
    pub(super) report: Report,
    made: Vec<(Dir, u64)>,
}

impl Run<'_, '_> {
    fn steps(&mut self) -> Result<()> {
        let mut deferred: Option<&Step> = None;
        let plan = self.plan;
        for step in &plan.steps {
            let failed = self.step(step);
            if let Some(earlier) = deferred.take() {
                // The step after a deferred one went first; now the deferred one has its last chance.
                failed.map_err(|Failed(_, error)| error)?;
                self.step(earlier).map_err(|Failed(_, error)| error)?;
            } else if let Err(Failed(Some(Reaction::Defer), _)) = failed {
                deferred = Some(step);
            } else {
                failed.map_err(|Failed(_, error)| error)?;
            }
        }
        match deferred {
            Some(step) => self.step(step).map_err(|Failed(_, error)| error),
            None => Ok(()),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Failed> {
        match &step.action {
            Action::MakeDir { dir, ancestor } => self.make_dir(dir, *ancestor).map_err(Failed::from),
            Action::EnableControllers { dir, required, wanted, evacuate, threads } => {
                self.enable(dir, required, wanted, *evacuate, *threads).map_err(Failed::from)
            }
            Action::Write { dir, file, value } => self.write(step, dir, file, value),
            Action::DeviceFilter { dir, policy, overriding } => {
                let open = self.open(dir)?;
                let here = open.descriptor().map_err(|errno| dir.not_opened(self.dirs.host, errno))?;
                let program = program::compile(policy);
                let (filter, report) =
                    DeviceFilter::prepare(here.as_fd(), &program, self.earlier, *overriding)?;
                self.plan.unsupported.mind(&report)?;
                filter.attach(here.as_fd())?;
                self.report.append(report);
                self.log.filter(dir, filter);
                Ok(())
            }
            Action::StartUnit { unit, path, properties, told, .. } => {
                self.start_unit(unit, path, properties, told).map_err(Failed::from)
            }
            Action::SetProperties { unit, told } => self.set_properties(unit, told).map_err(Failed::from),
            Action::Delegate { dir, owner } => self.delegate(step, dir, *owner).map_err(Failed::from),
        }
    }

    /// A step by itself, without those beside it.
    pub(super) fn write_step(&mut self, step: &Step) -> Result<()> {
        self.step(step).map_err(|Failed(_, error)| error)
    }

    pub(super) fn open(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>> {
        self.dirs.get(dir).map_err(|errno| dir.not_opened(self.dirs.host, errno))
    }

    fn make_dir(&mut self, dir: &Dir, ancestor: bool) -> Result<()> {
        let host = self.dirs.host;
        let is_own = !ancestor || dir.path == self.plan.path;
        if ancestor && let Ok(there) = self.dirs.get(dir) {
            return if is_own { self.take_again(dir, &there) } else { Ok(()) };
        }
        match self.dirs.above(dir).and_then(|above| above.make_dir(dir.name())) {
            Ok(()) => {}
            Err(Errno::EXIST) if ancestor => return Ok(()),
            Err(errno) => return Err(refusal::of_directory(&dir.full(host), errno)),
        }
        // What cannot be opened cannot be known again: it goes at once.
        let made = self.open(dir).inspect_err(|_| {
            _ = self.dirs.above(dir).and_then(|above| above.remove_dir(dir.name()));
        })?;
        self.log.dir(dir, &made, ancestor);
        let text = if is_own { self.plan.mark.as_deref() } else { Some(mark::ANCESTOR) };
        match text.map_or(Ok(true), |text| mark::mark(&made, text)) {
            // Without one it is known by its inode.
            Ok(_) => {}
            // Another creation was faster; both ancestors are the same.
            Err(Errno::EXIST) if ancestor => {}
            Err(errno) => return Err(refusal::of_directory(&dir.full(host), errno)),
        }
        if is_own { self.refuse_nested(dir, &made) } else { Ok(()) }
    }

    /// Takes a directory that a scope of systemd left when it ended by itself. That of another sandbox is not taken.
    fn take_again(&self, dir: &Dir, there: &CgroupDir) -> Result<()> {
        let Some(own) = self.plan.mark.as_deref() else { return Ok(()) };
        let is_taken = match mark::mark_of(there) {
            Some(mark) => mark != own,
            None => mark::mark(there, own) == Err(Errno::EXIST),
        };
        if is_taken {
            return Err(refusal::of_directory(&dir.full(self.dirs.host), Errno::EXIST));
        }
        Ok(())
    }

    /// Refuses a new directory inside another sandbox's, or one in which somebody else has made one already: everything that
    /// is done to the outer one would be done to the inner one. Seen when the new one is marked: of two that are made at once,
    /// one inside the other, the later mark sees the earlier.
    fn refuse_nested(&mut self, dir: &Dir, made: &CgroupDir) -> Result<()> {
        let Some(own) = self.plan.mark.clone() else { return Ok(()) };
        let host = self.dirs.host;
        let refused =
            |why, dir: &Dir| Err(Error::new(ErrorKind::AlreadyExists, why).with_path(dir.full(host)));
        let stat = made.stat().map_err(|errno| refusal::of_directory(&dir.full(host), errno))?;
        self.made.push((dir.clone(), stat.st_ino));
        // One link from above, one from itself, and one from each below (kernfs).
        if stat.st_nlink > 2 {
            return refused("somebody else made a cgroup inside at this moment", dir);
        }
        if self.plan.allow_nested || !mark::is_of_sandbox(&own) {
            return Ok(());
        }
        // What is delegated to us is somebody else's, and ours to use.
        let base = host.base_of(&dir.path);
        let mut here = dir.parent();
        while let Some(above) = here.filter(|above| above.path.len() > base.len()) {
            match self.dirs.get(&above).ok().and_then(|open| mark::mark_of(&open)) {
                // A part of it.
                Some(mark) if *mark == *own => break,
                Some(mark) if mark::is_of_sandbox(&mark) => {
                    let why = "this is the cgroup of another sandbox, and choose a path elsewhere, or allow it (--allow-nested)";
                    return refused(why, &above);
                }
                _ => here = above.parent(),
            }
        }
        Ok(())
    }

    fn enable(
        &mut self,
        dir: &Dir,
        required: &[Controller],
        wanted: &[Controller],
        evacuate: bool,
        threads: bool,
    ) -> Result<()> {
        let file = "cgroup.subtree_control";
        let open = self.open(dir)?;
        let path = dir.full(self.dirs.host).join(file);
        let words = |controllers: &[Controller]| {
            controllers.iter().map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" ")
        };
        let all = [required, wanted].concat();
        let threaded = all.iter().all(|controller| THREADED.contains(controller));
        let takes_children = |open: &CgroupDir| if threads { Ok(()) } else { takes_children(open) };
        let before = Controller::list_from_v2(&self.dirs.read_to_write(dir, file).unwrap_or_default());
        // With each write the kernel walks through all cgroups below, also if nothing changes.
        let are_enabled = all.iter().all(|controller| before.contains(controller));
        let enable = |dirs: &mut Dirs<'_>| {
            if are_enabled { Ok(()) } else { write_once(dirs.file(dir, file, OFlags::WRONLY)?, &words(&all)) }
        };
        let mut result =
            if threaded { takes_children(&open) } else { Ok(()) }.and_then(|()| enable(self.dirs));
        if result == Err(Errno::BUSY) && evacuate {
            move_to_leaf(&open).map_err(|errno| {
                Error::kernel("cannot move the processes out of the way", dir.full(self.dirs.host), errno)
            })?;
            self.report.note(
                "evacuate",
                path.display(),
                "the processes of this cgroup were moved to the leaf evacuated",
            );
            result = enable(self.dirs);
        }
        if result.is_ok() {
            return Ok(());
        }
        let takes_children = takes_children(&open);
        if let Err(errno @ Errno::OPNOTSUPP) = takes_children {
            return Err(Error::kernel(refusal::of_controller(errno), path, errno));
        }
        for controller in all {
            let enabled = takes_children.and_then(|()| open.write(file, &words(&[controller])));
            let Err(errno) = enabled else { continue };
            if before.contains(&controller) && takes_children.is_ok() {
                // Enabled by whom this is: not delegated, or shown read-only.
                continue;
            }
            let why = refusal::of_controller(errno);
            if required.contains(&controller) {
                return Err(Error::kernel(why, path, errno).with_setting(controller.as_str()));
            }
            self.report.note(controller.as_str(), "statistics", why);
        }
        Ok(())
    }

    /// The directory first: where that is refused, nothing has changed. Told once for all hierarchies.
    fn delegate(&mut self, step: &Step, dir: &Dir, owner: Owner) -> Result<()> {
        if self.report.unsupported().any(|line| line.setting == OWNER) {
            return Ok(());
        }
        let open = self.open(dir)?;
        let mut files = vec![".".to_owned()];
        files.extend(delegated_files(self.dirs.host.version_of(dir.hierarchy)));
        for file in files {
            let errno = match open.give(&file, owner.uid, owner.gid) {
                // This kernel has it not, or not without its controller.
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(errno) => errno,
            };
            if let Some(Reaction::Unsupported(why)) = step.reaction(errno) {
                let mut report = Report::default();
                report.add(OWNER, owner, why);
                self.plan.unsupported.mind(&report)?;
                self.report.append(report);
                return Ok(());
            }
            let full = dir.full(self.dirs.host);
            let error = refusal::of_write(step, &open, &full, &file, &owner.to_string(), errno);
            return Err(if file == "." { error.with_path(full) } else { error });
        }
        Ok(())
    }

    fn write(&mut self, step: &Step, dir: &Dir, name: &str, value: &str) -> Result<(), Failed> {
        let undo = match &step.undo {
            Undo::AsFound => match self.dirs.read_to_write(dir, name) {
                Ok(now) => {
                    let back = restoring(name, value, &now);
                    if let Some(record) = self.ahead {
                        let writes = back.iter().map(|line| (name, line.as_str()));
                        record(Begun::of_file(self.dirs.host, dir, writes))?;
                    }
                    &Undo::write(name, back)
                }
                // Writing it says what is wrong with the file.
                Err(_) => &Undo::Nothing,
            },
            undo => undo,
        };
        let mut tries = 0;
        while let Err(errno) = self.write_file(step, dir, name, value) {
            let open = self.open(dir)?;
            let reaction = step.reaction(errno);
            if reaction == Some(Reaction::DeviceReset) && tries < RETRIES {
                tries += 1;
                std::thread::sleep(RETRY_PAUSE);
                continue;
            }
            if step.is_optional() {
                return Ok(());
            }
            if let Some(Reaction::Unsupported(why)) = reaction {
                let mut report = Report::default();
                report.add(step.setting.clone().unwrap_or_default(), value, why);
                self.plan.unsupported.mind(&report)?;
                self.report.append(report);
                return Ok(());
            }
            let full = dir.full(self.dirs.host);
            return Err(Failed(reaction, refusal::of_write(step, &open, &full, name, value, errno)));
        }
        self.log.write(dir, undo);
        self.verify(step, dir, name, value).map_err(Failed::from)
    }

    /// Writes to the file, which is opened so that it can be read back where that is asked for.
    fn write_file(&mut self, step: &Step, dir: &Dir, name: &str, value: &str) -> Result<(), Errno> {
        let is_read_back = matches!(step.verify, Verify::ReadsBack { .. });
        let access = if is_read_back { OFlags::RDWR } else { OFlags::WRONLY };
        write_once(self.dirs.file(dir, name, access)?, value)
    }

    /// Sees that the kernel keeps what was written.
    fn verify(&mut self, step: &Step, dir: &Dir, name: &str, value: &str) -> Result<()> {
        let file = match &step.verify {
            Verify::Accepted => return Ok(()),
            Verify::ReadsBack { .. } => name,
            Verify::Within { file, .. } => *file,
            Verify::DeviceList(_) => DEVICES_LIST,
        };
        let host = self.dirs.host;
        let path = || dir.full(host).join(file);
        let now = self.dirs.read(dir, file);
        let now = now.map_err(|errno| Error::kernel("cannot read back what was written", path(), errno))?;
        let wrong = match &step.verify {
            Verify::ReadsBack { allowed } if now != value => {
                format!("the kernel made it {now}; allowed: {allowed}")
            }
            Verify::Within { asked, .. } if !lies_within(&now, asked) => {
                format!("the kernel runs on {now:?} instead, since the parent does not have it")
            }
            Verify::DeviceList(policy) if !transition::parse_devices_list(now.as_bytes())?.shows(policy) => {
                format!("the kernel's list is {now:?} instead")
            }
            _ => return Ok(()),
        };
        let setting = step.setting.clone().unwrap_or_default();
        let error = Error::new(ErrorKind::Kernel, wrong).with_path(path());
        Err(error.with_setting(setting).with_value(value.trim_end()))
    }
}

/// The files by which a cgroup is delegated, its directory aside. The kernel lists those of v2 (Linux 4.15).
pub(crate) fn delegated_files(version: Version) -> Vec<String> {
    if version == Version::V1 {
        return ["cgroup.procs", "tasks"].map(str::to_owned).to_vec();
    }
    match std::fs::read_to_string("/sys/kernel/cgroup/delegate") {
        Ok(listed) => listed.lines().filter(|name| !name.contains('/')).map(str::to_owned).collect(),
        Err(_) => ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"].map(str::to_owned).to_vec(),
    }
}

/// Whether a controller can be enabled for the children of a v2 cgroup, and leave them fit for processes. To enable a
/// threaded one where processes are succeeds: it makes the cgroup a thread root, and every child an invalid domain.
fn takes_children(open: &CgroupDir) -> Result<(), Errno> {
    match open.read("cgroup.type").as_deref().map_err(|errno| *errno) {
        Ok("domain") if open.read("cgroup.procs")?.is_empty() => Ok(()),
        Ok("domain") => Err(Errno::BUSY),
        // The root of the machine has no such file: it may hold processes.
        Err(Errno::NOENT) => Ok(()),
        Ok(_) => Err(Errno::OPNOTSUPP),
        Err(errno) => Err(errno),
    }
}

fn lies_within(now: &str, asked: &CpuSet) -> bool {
    now.parse::<CpuSet>().is_ok_and(|now| !now.is_empty() && now.is_subset(asked))
}

/// Why a step failed, and what its reaction would be.
struct Failed(Option<Reaction>, Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(None, error)
    }
}

/// Moves all processes of a v2 cgroup to a leaf below it, which is made on demand, until none is left.
fn move_to_leaf(dir: &CgroupDir) -> Result<Vec<u32>, Errno> {
    match dir.make_dir(EVACUATED) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let to = dir.open_dir(EVACUATED)?;
    let mut moved = Vec::new();
    for _ in 0..RETRIES {
        let pids: Vec<_> = proc::numbers(&dir.read("cgroup.procs")?).collect();
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            match to.enlist("cgroup.procs", pid) {
                Ok(()) => moved.push(pid),
                // It ended; the others still have to go.
                Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(moved)
}
