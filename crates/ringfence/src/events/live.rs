//! What is open of a cgroup that is there: the kernel's files that count, and what tells that they changed.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use rustix::process::PidfdFlags;

use super::FIRST;
use super::place::Kit;
use super::watches::Whom;
use crate::cgroup::{members, unless_removed};
use crate::host::{Controller, Host, Version};
use crate::kernel::dir::CgroupDir;
use crate::kernel::{proc, watch};

const PROCS: &str = "cgroup.procs";

/// A kernel file that is kept open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    /// v2.
    CgroupEvents,
    MemoryEvents,
    /// v1.
    OomControl,
    Failcnt,
    SwapFailcnt,
    FreezerState,
    /// Both.
    PidsEvents,
}

impl File {
    fn name(self) -> &'static str {
        match self {
            Self::CgroupEvents => "cgroup.events",
            Self::MemoryEvents => "memory.events",
            Self::OomControl => "memory.oom_control",
            Self::Failcnt => "memory.failcnt",
            Self::SwapFailcnt => "memory.memsw.failcnt",
            Self::FreezerState => "freezer.state",
            Self::PidsEvents => "pids.events",
        }
    }
}

/// What is open of a cgroup that is there.
#[derive(Debug)]
pub(super) struct Live {
    /// The number of its directory.
    pub(super) instance: u64,
    pub(super) files: Vec<(usize, File, OwnedFd)>,
    pub(super) watched: Vec<i32>,
    /// v1, where it is not known by v2's `cgroup.events` whether anybody is inside.
    pub(super) members: Option<Members>,
    /// v1: readable when memory ran out, before anybody is killed.
    pub(super) oom: Option<OwnedFd>,
    pub(super) triggers: Vec<OwnedFd>,
    pub(super) is_whole: bool,
    pub(super) populated: bool,
    pub(super) frozen: bool,
}

impl Live {
    /// One of which nothing is open yet.
    pub(super) fn new(instance: u64) -> Self {
        Self {
            instance,
            files: Vec::new(),
            watched: Vec::new(),
            members: None,
            oom: None,
            triggers: Vec::new(),
            is_whole: false,
            populated: false,
            frozen: false,
        }
    }

    /// Opens what is not open yet: on v1 the directories of a cgroup come one after the other.
    pub(super) fn open_missing(
        &mut self,
        key: u32,
        host: &Host,
        path: &str,
        reference: usize,
        files: &[(usize, File)],
        kit: &mut Kit,
    ) -> Result<()> {
        self.is_whole = true;
        if self.members.is_none() && host.version_of(reference) == Version::V1 {
            let opened = host.open(reference, path).and_then(|dir| {
                let number = kit.watches.file(dir.open(PROCS, OFlags::RDONLY)?, Whom::Sandbox(key))?;
                self.watched.push(number);
                Ok(Members { dir, one: None })
            });
            self.members = unless_removed(opened)?;
            self.is_whole = self.members.is_some();
        }
        for (hierarchy, file) in files {
            if self.files.iter().any(|(_, open, _)| open == file) {
                continue;
            }
            let opened = host.open(*hierarchy, path);
            let Some(dir) = unless_removed(opened)? else {
                self.is_whole = false;
                continue;
            };
            // Not every kernel has every file.
            let Some(fd) = unless_removed(dir.open(file.name(), OFlags::RDONLY))? else { continue };
            if *file == File::OomControl {
                self.oom = unless_removed(told_of_oom(key, &dir, &fd, kit))?;
            } else {
                self.watched.push(kit.watches.file(&fd, Whom::Sandbox(key))?);
            }
            self.files.push((*hierarchy, *file, fd));
        }
        Ok(())
    }

    /// Whether the kernel says when anything changes.
    pub(super) fn is_told(&self) -> bool {
        let is_told = |file| !matches!(file, File::Failcnt | File::SwapFailcnt);
        self.members.is_none() && self.files.iter().all(|(_, file, _)| is_told(*file))
    }
}

/// v1: the processes inside. The kernel tells when one joins, and by a pidfd when the first of them ends.
#[derive(Debug)]
pub(super) struct Members {
    dir: CgroupDir,
    one: Option<(u32, OwnedFd)>,
}

impl Members {
    /// Whether there are any, here or below; and false if the first of them has ended by now, so that it is to be asked again.
    pub(super) fn any(&mut self, key: u32, kit: &mut Kit) -> Result<(bool, bool)> {
        // A descriptor that is kept shows an old list for as long as it is read once a second.
        self.dir.read_into(PROCS, &mut kit.buffer)?;
        let first = kit.buffer.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let first = str::from_utf8(first).ok().and_then(|pid| pid.parse().ok());
        Ok((first.is_some() || self.are_below()?, self.follow(key, first, kit)))
    }

    /// In cgroups that somebody made below: each is one more link to the directory.
    fn are_below(&self) -> Result<bool> {
        if self.dir.stat()?.st_nlink <= 2 {
            return Ok(false);
        }
        let mut pids = BTreeSet::new();
        members(&self.dir, Version::V1, &mut pids).map(|()| !pids.is_empty())
    }

    /// Notices when a process inside ends. False where it has ended by now.
    fn follow(&mut self, key: u32, first: Option<u32>, kit: &Kit) -> bool {
        if self.one.as_ref().map(|(pid, _)| *pid) == first {
            // It may have ended, and another one have its PID.
            let has_ended = |fd: &OwnedFd| {
                let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&Default::default())).is_ok_and(|ready| ready > 0)
            };
            if !self.one.as_ref().is_some_and(|(_, fd)| has_ended(fd)) {
                return true;
            }
        }
        self.one = None;
        let Some(pid) = first else { return true };
        let Some(open) = proc::pid(pid) else { return true };
        let data = u64::from(key) + FIRST;
        let followed = rustix::process::pidfd_open(open, PidfdFlags::empty())
            .and_then(|fd| watch::add(&*kit.epoll, &fd, data, EventFlags::IN | EventFlags::ET).map(|()| fd));
        match followed {
            Ok(fd) => self.one = Some((pid, fd)),
            Err(Errno::SRCH) => return false,
            // It is looked at once a second.
            Err(_) => {}
        }
        true
    }
}

/// v1: a counter that is raised when memory runs out, and when the cgroup is removed.
fn told_of_oom(key: u32, dir: &CgroupDir, oom_control: &OwnedFd, kit: &Kit) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    let counter = watch::counter()?;
    let line = format!("{} {}", counter.as_raw_fd(), oom_control.as_raw_fd());
    dir.write("cgroup.event_control", &line)?;
    watch::add(&*kit.epoll, &counter, u64::from(key) + FIRST, EventFlags::IN)?;
    Ok(counter)
}

/// What there is to read of a cgroup.
pub(super) fn files(host: &Host, reference: usize) -> Vec<(usize, File)> {
    let of = |controller| host.hierarchy_of(controller).map(|(index, found)| (index, found.version));
    let mut files = Vec::new();
    if host.version_of(reference) == Version::V2 {
        files.push((reference, File::CgroupEvents));
    }
    match of(Controller::Memory) {
        Some((index, Version::V2)) => files.push((index, File::MemoryEvents)),
        Some((index, Version::V1)) => {
            files.extend([File::OomControl, File::Failcnt, File::SwapFailcnt].map(|file| (index, file)));
        }
        None => {}
    }
    files.extend(of(Controller::Pids).map(|(index, _)| (index, File::PidsEvents)));
    if let Some((index, Version::V1)) = of(Controller::Freezer) {
        files.push((index, File::FreezerState));
    }
    files
}
