//! What is open of a cgroup that is there: the kernel's files that count, and what tells that they changed.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use rustix::process::PidfdFlags;

use super::FIRST;
use super::place::Kit;
use super::watches::Whom;
use crate::cgroup::members;
use crate::host::{Controller, Host, Version};
use crate::kernel::dir::CgroupDir;
use crate::kernel::{proc, watch};

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
    Procs,
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
            Self::Procs => "cgroup.procs",
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
    /// v1: readable when memory ran out, before anybody is killed.
    pub(super) oom: Option<OwnedFd>,
    /// v1: a process inside, and what is readable when it has ended.
    pub(super) member: Option<(u32, OwnedFd)>,
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
            oom: None,
            member: None,
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
        files: &[(usize, File)],
        kit: &mut Kit,
    ) {
        self.is_whole = true;
        for (hierarchy, file) in files {
            if self.files.iter().any(|(_, open, _)| open == file) {
                continue;
            }
            let dir = host.root(*hierarchy).and_then(|root| root.open_dir(path));
            let Ok(dir) = dir else {
                self.is_whole = false;
                continue;
            };
            // Not every kernel has every file.
            let Ok(fd) = dir.open(file.name(), OFlags::RDONLY) else { continue };
            if *file == File::OomControl {
                self.oom = told_of_oom(key, &dir, &fd, kit).ok();
            } else if let Ok(number) = kit.watches.file(&fd, Whom::Sandbox(key)) {
                self.watched.push(number);
            }
            self.files.push((*hierarchy, *file, fd));
        }
    }

    /// v1: notices when a process inside ends. False where it has ended by now.
    pub(super) fn follow(&mut self, key: u32, first: Option<u32>, kit: &Kit) -> bool {
        if self.member.as_ref().map(|(pid, _)| *pid) == first {
            // It may have ended, and another one have its PID.
            let has_ended = |fd: &OwnedFd| {
                let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&Default::default())).is_ok_and(|ready| ready > 0)
            };
            if !self.member.as_ref().is_some_and(|(_, fd)| has_ended(fd)) {
                return true;
            }
        }
        self.member = None;
        let Some(pid) = first.and_then(proc::pid) else { return true };
        let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
        let data = u64::from(key) + FIRST;
        if watch::add(&*kit.epoll, &fd, data, EventFlags::IN | EventFlags::ET).is_err() {
            return false;
        }
        self.member = first.map(|pid| (pid, fd));
        true
    }

    /// v1: in cgroups that somebody made below.
    pub(super) fn has_members_below(&self, host: &Host, path: &str, reference: usize) -> bool {
        let Ok(dir) = host.root(reference).and_then(|root| root.open_dir(path)) else { return false };
        let mut pids = std::collections::BTreeSet::new();
        members(&dir, Version::V1, &mut pids).is_ok_and(|()| !pids.is_empty())
    }
}

/// v1: a counter that is raised when memory runs out, and when the cgroup is removed.
fn told_of_oom(key: u32, dir: &CgroupDir, oom_control: &OwnedFd, kit: &Kit) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    let counter = watch::counter()?;
    let line = format!("{} {}", counter.as_raw_fd(), oom_control.as_raw_fd());
    dir.write("cgroup.event_control", &line)?;
    watch::add(&*kit.epoll, &counter, u64::from(key) + FIRST, EventFlags::IN)?;
    Ok(counter)
}

/// Whether the kernel says when it changes. It does of `pids.events` of v1 before Linux 6.11 alone, and of `cgroup.procs`
/// only when somebody joins.
pub(super) fn is_told(file: File) -> bool {
    !matches!(file, File::Failcnt | File::SwapFailcnt | File::Procs)
}

/// What there is to read of a cgroup.
pub(super) fn files(host: &Host, reference: usize) -> Vec<(usize, File)> {
    let of = |controller| host.hierarchy_of(controller).map(|(index, found)| (index, found.version));
    let mut files = Vec::new();
    match host.version_of(reference) {
        Version::V2 => files.push((reference, File::CgroupEvents)),
        Version::V1 => files.push((reference, File::Procs)),
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
