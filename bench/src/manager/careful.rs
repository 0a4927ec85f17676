//! The floor of what Ringfence promises: the calls of `bare.rs`, and those without which no promise could be kept, one by
//! one as `crates/ringfence/tests/it/budget.rs` spells them out. It acts on no answer.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, OwnedFd};

use ringfence::{Controller, Host, Version};

use super::bare::{Bare, Root, open, write_all};
use super::{MAJOR, Manager, Program, bpf};
use crate::Result;

pub struct Careful {
    bare: Bare,
    /// What comes to the path later is another.
    dirs: Vec<OwnedFd>,
    proc: OwnedFd,
}

impl Careful {
    pub fn new(host: &Host) -> Self {
        let proc = std::fs::File::open("/proc").unwrap().into();
        Self { bare: Bare::new(host), dirs: Vec::new(), proc }
    }

    fn roots(&self) -> impl Iterator<Item = (&Root, &OwnedFd)> {
        self.bare.hierarchies.iter().zip(&self.dirs)
    }

    fn dir_of(&self, controller: Controller) -> Option<(Version, &OwnedFd)> {
        let mut roots = self.roots();
        roots.find(|(root, _)| root.controllers.contains(&controller)).map(|(root, dir)| (root.version, dir))
    }

    fn unified(&self) -> Option<&OwnedFd> {
        self.roots().find(|(root, _)| root.version == Version::V2).map(|(_, dir)| dir)
    }

    /// What joins a frozen cgroup stops there.
    fn not_frozen(&self) -> Result<()> {
        match (self.dir_of(Controller::Freezer), self.unified()) {
            (Some((Version::V1, dir)), _) => read(dir, c"freezer.state"),
            (_, Some(dir)) => {
                [c"cgroup.events", c"cgroup.freeze"].iter().try_for_each(|file| read(dir, file))
            }
            _ => Ok(()),
        }
    }
}

/// One read(2) of a small file is all of it.
fn again(file: &OwnedFd) -> Result<()> {
    let mut buffer = [0_u8; 4096];
    // SAFETY: a descriptor that is open, and a buffer with its length.
    match unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) } {
        -1 => Err(std::io::Error::last_os_error().into()),
        _ => Ok(()),
    }
}

fn read(dir: &OwnedFd, file: &CStr) -> Result<()> {
    again(&open(dir, file, libc::O_RDONLY)?)
}

fn stat(dir: &OwnedFd) -> Result<()> {
    // SAFETY: all zeroes is a `stat`, which the kernel overwrites.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor that is open.
    match unsafe { libc::fstat(dir.as_raw_fd(), &raw mut stat) } {
        -1 => Err(std::io::Error::last_os_error().into()),
        _ => Ok(()),
    }
}

impl Manager for Careful {
    fn create(&mut self, name: &str, pid: u32) -> Result<()> {
        // A new cpuset of v1 has what its parent has now.
        for root in self.bare.hierarchies.iter().filter(|root| root.cpuset.is_some()) {
            [c"cpuset.cpus", c"cpuset.mems"].iter().try_for_each(|file| read(&root.fd, file))?;
        }
        if let Some(only) = self.bare.v2_alone() {
            read(&only.fd, c"cgroup.subtree_control")?;
        }
        self.bare.make(name)?;
        let name = CString::new(name)?;
        let place = libc::O_PATH | libc::O_DIRECTORY;
        let opened = self.bare.hierarchies.iter().map(|root| open(&root.fd, &name, place));
        self.dirs = opened.collect::<Result<_>>()?;
        match (self.dir_of(Controller::Devices), &self.bare.program) {
            (Some((_, dir)), _) => read(dir, c"devices.list")?,
            (None, Some(program)) => bpf::look(self.dirs[0].as_raw_fd(), program.as_raw_fd())?,
            (None, None) => {}
        }
        self.not_frozen()?;
        for file in ["stat", "cgroup"] {
            read(&self.proc, &CString::new(format!("{pid}/{file}"))?)?;
        }
        let pid = pid.to_string();
        self.dirs
            .iter()
            .try_for_each(|dir| write_all(&open(dir, c"cgroup.procs", libc::O_WRONLY)?, [pid.as_bytes()]))
    }

    fn spawn(&mut self, program: &Program) -> Result<()> {
        self.not_frozen()?;
        self.bare.spawn(program)
    }

    fn set(&mut self, pids: u64) -> Result<()> {
        let Some((_, dir)) = self.dir_of(Controller::Pids) else { return Ok(()) };
        let file = open(dir, c"pids.max", libc::O_RDWR)?;
        again(&file)?;
        write_all(&file, [pids.to_string().as_bytes()])?;
        again(&file)
    }

    fn allow(&mut self, minor: u32) -> Result<()> {
        let Some((_, dir)) = self.dir_of(Controller::Devices) else {
            self.bare.allow(minor)?;
            let Some(program) = &self.bare.program else { return Ok(()) };
            return bpf::look(self.dirs[0].as_raw_fd(), program.as_raw_fd());
        };
        let list = open(dir, c"devices.list", libc::O_RDONLY)?;
        again(&list)?;
        let rule = format!("b {MAJOR}:{minor} rw");
        write_all(&open(dir, c"devices.allow", libc::O_WRONLY)?, [rule.as_bytes()])?;
        again(&list)
    }

    fn destroy(&mut self) -> Result<()> {
        for (root, dir) in self.roots() {
            // Nobody is inside, or below.
            read(dir, if root.version == Version::V1 { c"cgroup.procs" } else { c"cgroup.events" })?;
            stat(dir)?;
        }
        // Nobody can know of it behind the removal.
        match self.dir_of(Controller::Memory) {
            Some((Version::V1, dir)) => {
                let files = [c"memory.oom_control", c"memory.failcnt", c"memory.memsw.failcnt"];
                // Without swap accounting, there are two.
                files.iter().for_each(|file| _ = read(dir, file));
            }
            Some((Version::V2, dir)) => read(dir, c"memory.events")?,
            None => {}
        }
        if let Some((_, dir)) = self.dir_of(Controller::Pids) {
            read(dir, c"pids.events")?;
        }
        self.dirs.clear();
        self.bare.destroy()
    }
}
