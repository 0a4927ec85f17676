//! One cgroup that is watched, from before it is there until after it is gone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::counts::{Counts, LastCounts, Tally, flat, reference};
use super::live::{File, Live, files};
use super::mailbox::{Mailbox, PressureThread};
use super::trigger::PressureTrigger;
use super::watches::{Watches, Whom};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::kernel::dir::{read_all, write_once};
use crate::kernel::watch;

/// How often, and how soon, is looked again where the kernel tells of something before it has happened.
const HURRIED: u32 = 32;
const HURRY: Duration = Duration::from_millis(1);
/// After that, ever more slowly, up to this; and for ever where the kernel tells nothing.
const PACE: Duration = Duration::from_secs(1);

/// What all of it needs that waits.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) epoll: Arc<OwnedFd>,
    pub(super) watches: Watches,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) pressure: Option<PressureThread>,
    pub(super) buffer: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Place {
    /// The number of the sandbox.
    key: u32,
    host: Arc<Host>,
    path: String,
    /// With the hierarchies in which they are.
    files: Vec<(usize, File)>,
    /// The hierarchy by whose directory it is known whether the cgroup is there.
    reference: usize,
    /// The watches of the directories that lead to it.
    way: Vec<i32>,
    live: Option<Live>,
    hurried: u32,
    pace: Duration,
    /// When to look again.
    pub(super) again: Option<Instant>,
}

impl Place {
    /// A place where a cgroup is, or will be.
    pub(super) fn new(key: u32, host: &Arc<Host>, path: &str, kit: &mut Kit) -> Result<Self> {
        let reference = reference(host, path);
        let mut place = Self {
            key,
            host: Arc::clone(host),
            path: path.to_owned(),
            files: files(host, reference),
            reference,
            way: Vec::new(),
            live: None,
            hurried: 0,
            pace: PACE,
            again: None,
        };
        place.walk(kit)?;
        Ok(place)
    }

    /// Takes the cgroup that is there now, if one is, with all that happened in it before.
    pub(super) fn begin(&mut self, kit: &mut Kit, tally: &mut Tally) -> Result<()> {
        if self.open(&[], kit)? {
            self.read(kit, tally)?;
            self.pace();
        }
        Ok(())
    }

    /// Whether its cgroup is there.
    pub(super) fn is_there(&self) -> bool {
        self.live.is_some()
    }

    pub(super) fn is_populated(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.populated)
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.frozen)
    }

    /// Looks soon, and soon again.
    pub(super) fn hurry(&mut self) {
        self.hurried = HURRIED;
        self.again = Some(Instant::now() + HURRY);
    }

    /// Watches the directories on the way, as far as there are any.
    pub(super) fn walk(&mut self, kit: &mut Kit) -> Result<()> {
        let opened = self.host.open(self.reference, "");
        let mut dir = opened.map_err(|errno| self.failed("cannot open the root", errno))?;
        for name in self.path.split('/') {
            let watched = dir
                .descriptor()
                .and_then(|open| kit.watches.directory(open, Whom::Sandbox(self.key), Some(name)));
            let number = watched.map_err(|errno| self.failed(CANNOT_WATCH, errno))?;
            if !self.way.contains(&number) {
                self.way.push(number);
            }
            match dir.open_dir(name) {
                Ok(below) => dir = below,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Reads everything.
    pub(super) fn look(
        &mut self,
        triggers: &[PressureTrigger],
        kit: &mut Kit,
        tally: &mut Tally,
    ) -> Result<()> {
        if let Some(live) = &self.live
            && let Some(oom) = &live.oom
            && watch::lower(oom)
        {
            self.hurry();
        }
        self.read(kit, tally)?;
        if !self.is_there() {
            self.walk(kit)?;
            if self.open(triggers, kit)? {
                // All that it has counted happened since we looked before.
                self.hurry();
                self.read(kit, tally)?;
            }
        }
        self.pace();
        Ok(())
    }

    /// When to look again.
    fn pace(&mut self) {
        let now = Instant::now();
        if self.again.is_some_and(|again| again > now) {
            return;
        }
        if self.hurried > 0 {
            self.hurried -= 1;
            self.pace = HURRY;
        } else {
            self.pace = (self.pace * 2).min(PACE);
        }
        let is_told = self.live.as_ref().is_none_or(Live::is_told);
        self.again = (self.pace < PACE || !is_told).then(|| now + self.pace);
    }

    /// Reads all files, and closes them if the cgroup is gone.
    fn read(&mut self, kit: &mut Kit, tally: &mut Tally) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        if !live.is_whole {
            let opened =
                live.open_missing(self.key, &self.host, &self.path, self.reference, &self.files, kit);
            opened.map_err(|errno| failed(CANNOT_WATCH, &self.path, errno))?;
        }
        let mut now = Counts::default();
        let (mut populated, mut frozen, mut is_settled) = (false, false, true);
        let buffer = &mut kit.buffer;
        let mut is_gone = false;
        for (hierarchy, file, fd) in &live.files {
            if let Err(errno) = read_all(fd, buffer) {
                is_gone |= errno == Errno::NODEV && *hierarchy == self.reference;
                continue;
            }
            match file {
                File::CgroupEvents => {
                    for (key, value) in flat(buffer) {
                        populated |= key == b"populated" && value == 1;
                        frozen |= key == b"frozen" && value == 1;
                    }
                }
                File::MemoryEvents => now.take_memory_events(buffer),
                File::OomControl => now.take_oom_control(buffer),
                File::Failcnt | File::SwapFailcnt => now.take_failcnt(buffer),
                File::PidsEvents => now.take_pids_events(buffer),
                File::FreezerState => match buffer.trim_ascii() {
                    b"FROZEN" => frozen = true,
                    // It tells of nothing more.
                    b"FREEZING" => (is_settled, frozen) = (false, live.frozen),
                    _ => {}
                },
            }
        }
        if let Some(members) = &mut live.members {
            match members.any(self.key, kit) {
                Ok((any, is_followed)) => {
                    populated = any;
                    is_settled &= is_followed;
                }
                Err(Errno::NOENT | Errno::NODEV) => is_gone = true,
                Err(errno) => return Err(failed("cannot read who is inside", &self.path, errno)),
            }
        }
        let by = tally.count(&LastCounts { instance: live.instance, counts: now });
        if is_gone {
            self.leave(kit);
            return Ok(());
        }
        if by.oom_kill.is_some() {
            self.hurried = 0;
        }
        if !is_settled {
            self.hurried = self.hurried.max(2);
            self.again = self.again.or_else(|| Some(Instant::now() + HURRY));
        }
        (live.populated, live.frozen) = (populated, frozen);
        Ok(())
    }

    /// Closes what is open of a cgroup that is gone.
    fn leave(&mut self, kit: &mut Kit) {
        if let Some(live) = self.live.take() {
            live.watched.iter().for_each(|number| kit.watches.forget(*number, Whom::Sandbox(self.key)));
        }
    }

    /// Ends all watches.
    pub(super) fn close(&mut self, kit: &mut Kit) {
        self.leave(kit);
        self.way.drain(..).for_each(|number| kit.watches.forget(number, Whom::Sandbox(self.key)));
    }

    /// Opens the cgroup; false if there is none.
    fn open(&mut self, triggers: &[PressureTrigger], kit: &mut Kit) -> Result<bool> {
        let opened = self.host.open(self.reference, &self.path);
        let Ok(dir) = opened else { return Ok(false) };
        let instance = dir.inode().map_err(|errno| self.failed("cannot look at", errno))?;
        let mut live = Live::new(instance);
        let opened = live.open_missing(self.key, &self.host, &self.path, self.reference, &self.files, kit);
        self.live = Some(live);
        opened.map_err(|errno| self.failed(CANNOT_WATCH, errno))?;
        for (position, trigger) in triggers.iter().enumerate() {
            self.arm(position, trigger, kit)?;
        }
        Ok(true)
    }

    /// Registers a pressure trigger with the kernel. Does nothing if the cgroup is gone or is being removed.
    pub(super) fn arm(&mut self, position: usize, trigger: &PressureTrigger, kit: &mut Kit) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let unified = self.host.unified().map_or(usize::MAX, |(index, _)| index);
        let dir = self.host.open(unified, &self.path);
        let opened = dir.and_then(|dir| dir.open(trigger.file(), OFlags::RDWR | OFlags::NONBLOCK));
        let armed = opened.and_then(|fd| write_once(&fd, &trigger.line()).map(|()| fd));
        let fd = match armed {
            Ok(fd) => fd,
            Err(Errno::NODEV) => return Ok(()),
            Err(Errno::NOENT) if self.is_being_removed(unified) => return Ok(()),
            Err(errno) => return Err(trigger.refused(errno)),
        };
        let cannot = |error: std::io::Error| {
            Error::new(ErrorKind::Kernel, "cannot start a thread that waits for pressure").with_source(error)
        };
        if kit.pressure.is_none() {
            kit.pressure = Some(PressureThread::start(&kit.mailbox).map_err(cannot)?);
        }
        if let Some(thread) = &kit.pressure {
            thread.add(self.key, position, &fd).map_err(|errno| cannot(errno.into()))?;
        }
        live.triggers.push(fd);
        Ok(())
    }

    /// Whether the directory has lost its files, or is gone: rmdir(2) removes the files of a cgroup before its directory,
    /// `cgroup.procs` among the first.
    fn is_being_removed(&self, hierarchy: usize) -> bool {
        self.host.open(hierarchy, &self.path).map_or(true, |dir| !dir.has("cgroup.procs"))
    }

    fn failed(&self, what: &'static str, errno: Errno) -> Error {
        failed(what, &self.path, errno)
    }
}

fn failed(what: &'static str, path: &str, errno: Errno) -> Error {
    let what = match errno {
        Errno::NOSPC => TOO_MANY,
        Errno::MFILE => TOO_MANY_OPEN,
        _ => what,
    };
    Error::kernel(what, path, errno)
}

const CANNOT_WATCH: &str = "cannot watch the directory";
const TOO_MANY_OPEN: &str = "cannot watch any more: raise the limit of open files (RLIMIT_NOFILE)";
const TOO_MANY: &str = "cannot watch any more: raise fs.inotify.max_user_watches (sysctl)";
