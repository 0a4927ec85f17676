//! The cgroupfs driver: carries the steps of a plan out, and undoes them in reverse when one fails.
//!
//! It knows nothing of OCI: which value goes where, in which order and back, is in the steps.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::undo::Log;
use crate::devices::filter::{DeviceFilter, Earlier};
use crate::devices::{program, transition};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Host};
use crate::kernel::dir::CgroupDir;
use crate::plan::{Action, DEVICES_LIST, Dir, Observed, Plan, Reaction, ReadSet, Step, Verify};
use crate::report::Report;
use crate::resources::CpuSet;

/// How often and for how long a refusal that goes away by itself is retried: 50 ms in all.
const RETRIES: u32 = 50;
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// Directories that are open, by hierarchy and path; each is opened once for one operation.
#[derive(Debug)]
pub(crate) struct Dirs<'a> {
    host: &'a Host,
    open: Vec<(Dir, Arc<CgroupDir>)>,
}

impl<'a> Dirs<'a> {
    pub(crate) fn new(host: &'a Host, open: Vec<(Dir, Arc<CgroupDir>)>) -> Self {
        Self { host, open }
    }

    /// The directory, opened now if it was not yet.
    pub(crate) fn get(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        if let Some((_, open)) = self.open.iter().find(|(known, _)| known == dir) {
            return Ok(Arc::clone(open));
        }
        let root = self.host.root(dir.hierarchy)?;
        let opened = if dir.path.is_empty() { root } else { Arc::new(root.open_dir(&dir.path)?) };
        self.open.push((dir.clone(), Arc::clone(&opened)));
        Ok(opened)
    }

    fn forget(&mut self, dir: &Dir) {
        self.open.retain(|(known, _)| known != dir);
    }

    /// Gives the descriptor of a directory away.
    pub(crate) fn take(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        let opened = self.get(dir)?;
        self.forget(dir);
        Ok(opened)
    }
}

/// Reads what the planner needs.
pub(crate) fn observe(host: &Host, dirs: &mut Dirs<'_>, path: &str, set: &ReadSet) -> Result<Observed> {
    let mut observed = Observed::default();
    for (hierarchy, file) in &set.files {
        let dir = Dir::new(*hierarchy, path);
        let full = || dir.full(host).join(file.as_ref());
        let open =
            dirs.get(&dir).map_err(|errno| Error::kernel("cannot open the cgroup", dir.full(host), errno))?;
        match open.read(file) {
            Ok(content) => observed.insert(*hierarchy, path, file.clone(), content),
            // A kernel without the file: the planner takes that as its answer.
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(Error::kernel("cannot read what is in force", full(), errno)),
        }
    }
    if let Some((hierarchy, files)) = &set.inherited {
        observe_ancestors(host, dirs, &Dir::new(*hierarchy, path), files, &mut observed)?;
    }
    Ok(observed)
}

/// Reads the cpusets of the ancestors that exist, from the nearest up to the first in which nothing is empty.
fn observe_ancestors(
    host: &Host,
    dirs: &mut Dirs<'_>,
    leaf: &Dir,
    files: &[&'static str; 2],
    observed: &mut Observed,
) -> Result<()> {
    let mut next = leaf.parent();
    while let Some(dir) = next {
        next = dir.parent();
        let Ok(open) = dirs.get(&dir) else { continue };
        let mut complete = true;
        for file in files {
            let content = open.read(file).map_err(|errno| {
                Error::kernel("cannot read the CPU set", dir.full(host).join(file), errno)
            })?;
            complete &= !content.is_empty();
            observed.insert(dir.hierarchy, &dir.path, Cow::Borrowed(file), content);
        }
        if complete {
            break;
        }
    }
    Ok(())
}

/// What a plan that was carried out leaves.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) report: Report,
    /// Our device program, if the plan attached one.
    pub(crate) filter: Option<DeviceFilter>,
}

/// Carries the plan out. On failure everything that it did is undone, and the error is that of the step that failed.
pub(crate) fn carry_out(plan: &Plan, dirs: &mut Dirs<'_>, earlier: Earlier<'_>) -> Result<Done> {
    let mut run = Run { plan, dirs, earlier, log: Log::default(), report: Report::default() };
    match run.steps() {
        Ok(()) => Ok(Done { report: run.report, filter: run.log.into_filter() }),
        Err(error) => {
            let Run { dirs, log, .. } = run;
            let failures = log.undo(dirs);
            Err(if failures.is_empty() {
                error
            } else {
                let what = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                error.with_source(Error::new(ErrorKind::Kernel, format!("and could not be undone: {what}")))
            })
        }
    }
}

struct Run<'a, 'h> {
    plan: &'a Plan,
    dirs: &'a mut Dirs<'h>,
    earlier: Earlier<'a>,
    log: Log,
    report: Report,
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
            Action::EnableControllers { dir, required, wanted, evacuate } => {
                self.enable(dir, required, wanted, *evacuate).map_err(Failed::from)
            }
            Action::Write { dir, .. } if step.only_if_made && !self.log.made(dir) => Ok(()),
            Action::Write { dir, file, value } => self.write(step, dir, file, value),
            Action::DeviceFilter { dir, policy, overriding } => {
                let open = self.open(dir)?;
                let program = program::compile(policy);
                let (filter, report) =
                    DeviceFilter::install(open.as_fd(), &program, self.earlier, *overriding)?;
                self.report.append(report);
                self.log.filter(dir, filter);
                Ok(())
            }
        }
    }

    fn open(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>> {
        self.dirs
            .get(dir)
            .map_err(|errno| Error::kernel("cannot open the cgroup", dir.full(self.dirs.host), errno))
    }

    fn make_dir(&mut self, dir: &Dir, ancestor: bool) -> Result<()> {
        let Some(parent) = dir.parent() else { return Ok(()) };
        let host = self.dirs.host;
        if ancestor && self.dirs.get(dir).is_ok() {
            return Ok(());
        }
        let mut made = self.open(&parent)?.make_dir(dir.name());
        if made == Err(Errno::NOENT) || made == Err(Errno::NODEV) {
            // Another sandbox was the last one in the parent and took it along.
            made = self.remake(&parent).and_then(|parent| parent.make_dir(dir.name()));
        }
        match made {
            Ok(()) => {
                self.log.dir(dir);
                Ok(())
            }
            Err(Errno::EXIST) if ancestor => Ok(()),
            Err(errno) => Err(make_dir_error(dir.full(host), errno)),
        }
    }

    /// Makes an ancestor again that vanished after it was seen.
    fn remake(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        self.dirs.forget(dir);
        if let Some(parent) = dir.parent() {
            match self.dirs.get(&parent)?.make_dir(dir.name()) {
                Ok(()) => self.log.dir(dir),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.dirs.get(dir)
    }

    fn enable(
        &mut self,
        dir: &Dir,
        required: &[Controller],
        wanted: &[Controller],
        evacuate: bool,
    ) -> Result<()> {
        let file = "cgroup.subtree_control";
        let open = self.open(dir)?;
        let path = dir.full(self.dirs.host).join(file);
        let words = |controllers: &[Controller]| {
            controllers.iter().map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" ")
        };
        let all = [required, wanted].concat();
        let mut result = open.write(file, &words(&all));
        if result == Err(Errno::BUSY) && evacuate {
            move_to_leaf(&open, "evacuated").map_err(|errno| {
                Error::kernel("cannot move the processes out of the way", dir.full(self.dirs.host), errno)
            })?;
            result = open.write(file, &words(&all));
        }
        if result.is_ok() {
            return Ok(());
        }
        for controller in all {
            let Err(errno) = open.write(file, &words(&[controller])) else { continue };
            let why = enable_refusal(errno);
            if required.contains(&controller) {
                return Err(Error::kernel(why, path, errno).with_setting(controller.as_str()));
            }
            self.report.note(controller.as_str(), "statistics", why);
        }
        Ok(())
    }

    fn write(&mut self, step: &Step, dir: &Dir, file: &str, value: &str) -> Result<(), Failed> {
        let open = self.open(dir)?;
        let mut tries = 0;
        while let Err(errno) = open.write(file, value) {
            let reaction = step.reaction(errno);
            if reaction == Some(Reaction::DeviceReset) && tries < RETRIES {
                tries += 1;
                std::thread::sleep(RETRY_PAUSE);
                continue;
            }
            return Err(Failed(reaction, self.refusal(step, &open, dir, file, value, errno)));
        }
        self.log.write(dir, &step.undo);
        self.verify(step, &open, dir, file, value).map_err(Failed::from)
    }

    fn refusal(
        &self,
        step: &Step,
        open: &CgroupDir,
        dir: &Dir,
        file: &str,
        value: &str,
        errno: Errno,
    ) -> Error {
        if matches!(step.reaction(errno), Some(Reaction::DeviceRule | Reaction::DeviceReset)) {
            return transition::refusal(&dir.full(self.dirs.host), file, value, errno);
        }
        let message: Cow<'static, str> = match step.reaction(errno) {
            Some(Reaction::Explain(why)) => why.into(),
            Some(Reaction::MemoryInUse) => {
                let read = |file| open.read(file).unwrap_or_else(|_| "unknown".to_owned());
                let (usage, peak) = (read("memory.usage_in_bytes"), read("memory.max_usage_in_bytes"));
                format!("more is in use than that: {usage} bytes now, {peak} at the peak").into()
            }
            _ => match errno {
                Errno::NOENT => "this cgroup has no such file".into(),
                Errno::ACCESS | Errno::PERM => "no permission to write this file".into(),
                Errno::ROFS => "the cgroup file system is mounted read-only".into(),
                _ => "the kernel refused the value".into(),
            },
        };
        let kind = if matches!(step.reaction(errno), Some(Reaction::MemoryInUse)) {
            ErrorKind::Busy
        } else {
            ErrorKind::Kernel
        };
        let error = Error::kernel(message, dir.full(self.dirs.host).join(file), errno)
            .with_kind(kind)
            .with_value(value.trim_end());
        match &step.setting {
            Some(setting) => error.with_setting(setting.clone()),
            None => error,
        }
    }

    /// Sees that the kernel keeps what was written.
    fn verify(&mut self, step: &Step, open: &CgroupDir, dir: &Dir, file: &str, value: &str) -> Result<()> {
        let host = self.dirs.host;
        let read = |file: &str| {
            let path = || dir.full(host).join(file);
            open.read(file).map_err(|errno| Error::kernel("cannot read back what was written", path(), errno))
        };
        let setting = step.setting.clone().unwrap_or_default();
        let wrong = |message: String, file: &str| {
            let path = dir.full(host).join(file);
            let error = Error::new(ErrorKind::Kernel, message).with_path(path).with_setting(setting.clone());
            Err(error.with_value(value.trim_end()))
        };
        match &step.verify {
            Verify::Accepted => Ok(()),
            Verify::ReadsBack { allowed } => {
                let now = read(file)?;
                if now == value {
                    Ok(())
                } else {
                    wrong(format!("the kernel made it {now}; allowed: {allowed}"), file)
                }
            }
            Verify::Within { file: effective, asked } => {
                let now = read(effective)?;
                match now.parse::<CpuSet>() {
                    Ok(set) if !set.is_empty() && set.is_subset(asked) => Ok(()),
                    _ => wrong(
                        format!("the kernel runs on {now:?} instead, since the parent does not have it"),
                        effective,
                    ),
                }
            }
            Verify::DeviceList(policy) => {
                let now = read(DEVICES_LIST)?;
                if transition::parse_devices_list(now.as_bytes())?.shows(policy) {
                    Ok(())
                } else {
                    wrong(format!("the kernel's list is {now:?} instead"), DEVICES_LIST)
                }
            }
        }
    }
}

/// Why a step failed, and what its reaction would be.
struct Failed(Option<Reaction>, Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(None, error)
    }
}

fn make_dir_error(path: std::path::PathBuf, errno: Errno) -> Error {
    let (kind, message) = match errno {
        Errno::EXIST => (ErrorKind::AlreadyExists, "there is such a cgroup already"),
        Errno::ACCESS | Errno::PERM => (ErrorKind::Kernel, "no permission to make a cgroup here"),
        Errno::ROFS => (ErrorKind::Kernel, "the cgroup file system is mounted read-only"),
        Errno::AGAIN => {
            (ErrorKind::Kernel, "cgroup.max.descendants or cgroup.max.depth of an ancestor is reached")
        }
        _ => (ErrorKind::Kernel, "cannot make the cgroup"),
    };
    Error::kernel(message, path, errno).with_kind(kind)
}

fn enable_refusal(errno: Errno) -> &'static str {
    match errno {
        Errno::BUSY => {
            "processes are in this cgroup, and cgroup v2 enables controllers only where there are none: move them to a \
             leaf first (evacuate)"
        }
        Errno::NOENT => "the controller is not offered here: it must be enabled above",
        Errno::OPNOTSUPP => {
            "the cgroup is threaded, or has a threaded child: domain controllers cannot be enabled"
        }
        Errno::ACCESS | Errno::PERM => {
            "no permission to enable controllers here: the subtree is not delegated"
        }
        Errno::ROFS => "the cgroup file system is mounted read-only",
        _ => "the kernel refused to enable the controller",
    }
}

/// Moves all processes of a v2 cgroup to a leaf below it, which is made on demand, until none is left.
pub(crate) fn move_to_leaf(dir: &CgroupDir, leaf: &str) -> Result<Vec<u32>, Errno> {
    match dir.make_dir(leaf) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let to = dir.open_dir(leaf)?;
    let mut moved = Vec::new();
    for _ in 0..RETRIES {
        let pids: Vec<u32> = dir.read("cgroup.procs")?.lines().filter_map(|pid| pid.parse().ok()).collect();
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            match to.write("cgroup.procs", &pid.to_string()) {
                Ok(()) => moved.push(pid),
                // It ended; the others still have to go.
                Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(moved)
}
