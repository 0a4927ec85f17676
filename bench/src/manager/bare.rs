//! The floor: what the kernel itself takes. No checks, no way back, no knowledge beyond a name.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, OwnedFd};

use ringfence::{Controller, Host, Version};

use super::{MAJOR, MEMORY, Manager, PERIOD, PIDS, Program, QUOTA, RULES, bpf, fork_and_wait};
use crate::Result;

pub struct Bare {
    pub(super) hierarchies: Vec<Root>,
    has_v1_devices: bool,
    name: String,
    /// v2: the program that is attached.
    pub(super) program: Option<OwnedFd>,
}

pub(super) struct Root {
    pub(super) fd: OwnedFd,
    pub(super) version: Version,
    pub(super) controllers: Vec<Controller>,
    /// v1's CPUs and memory nodes, which a new cgroup has not.
    pub(super) cpuset: Option<[Vec<u8>; 2]>,
}

impl Bare {
    pub fn new(host: &Host) -> Self {
        let hierarchies = host.hierarchies.iter().map(|hierarchy| {
            let fd = std::fs::File::open(&hierarchy.root).unwrap().into();
            let is_cpuset =
                hierarchy.version == Version::V1 && hierarchy.controllers.contains(&Controller::Cpuset);
            let read = |file| std::fs::read(hierarchy.root.join(file)).unwrap();
            let cpuset = is_cpuset.then(|| ["cpuset.cpus", "cpuset.mems"].map(read));
            Root { fd, version: hierarchy.version, controllers: hierarchy.controllers.clone(), cpuset }
        });
        let hierarchies: Vec<_> = hierarchies.collect();
        let has_v1_devices = hierarchies.iter().any(|root| root.controllers.contains(&Controller::Devices));
        let bare = Self { hierarchies, has_v1_devices, name: String::new(), program: None };
        if let Some(only) = bare.v2_alone() {
            let controllers = &b"+memory +cpu +pids +io"[..];
            put(only, &c"cgroup.subtree_control".into(), [controllers]).unwrap();
        }
        bare
    }

    /// The root where there is no v1.
    pub(super) fn v2_alone(&self) -> Option<&Root> {
        match &*self.hierarchies {
            [only] if only.version == Version::V2 => Some(only),
            _ => None,
        }
    }

    fn root_of(&self, controller: Controller) -> &Root {
        self.hierarchies.iter().find(|root| root.controllers.contains(&controller)).unwrap()
    }

    fn path(&self, file: &str) -> CString {
        CString::new(format!("{}/{file}", self.name)).unwrap()
    }

    fn write(&self, root: &Root, file: &str, value: &[u8]) -> Result<()> {
        put(root, &self.path(file), [value])
    }

    /// The cgroup and its limits, without a process.
    pub fn make(&mut self, name: &str) -> Result<()> {
        self.name = name.to_owned();
        let c_name = CString::new(name)?;
        for root in &self.hierarchies {
            // SAFETY: a descriptor that is open, and a C string.
            if unsafe { libc::mkdirat(root.fd.as_raw_fd(), c_name.as_ptr(), 0o755) } < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            if let Some([cpus, mems]) = &root.cpuset {
                self.write(root, "cpuset.cpus", cpus)?;
                self.write(root, "cpuset.mems", mems)?;
            }
        }
        if self.has_v1_devices {
            let root = self.root_of(Controller::Devices);
            self.write(root, "devices.deny", b"a *:* rwm")?;
            let asked = (0..RULES).map(|minor| format!("b {MAJOR}:{minor} rw"));
            let defaults = bpf::DEFAULTS.map(|(kind, major, minor)| match minor {
                Some(minor) => format!("{kind} {major}:{minor} rwm"),
                None => format!("{kind} {major}:* rwm"),
            });
            let rules: Vec<String> = asked.chain(defaults).collect();
            put(root, &self.path("devices.allow"), rules.iter().map(|rule| rule.as_bytes()))?;
        } else {
            let dir = open(&self.hierarchies[0].fd, &c_name, libc::O_RDONLY | libc::O_DIRECTORY)?;
            let program = bpf::load(RULES)?;
            bpf::attach(dir.as_raw_fd(), program.as_raw_fd(), None)?;
            self.program = Some(program);
        }
        self.limit(Controller::Memory, "memory.limit_in_bytes", "memory.max", &MEMORY.to_string())?;
        if self.root_of(Controller::Cpu).version == Version::V1 {
            self.limit(Controller::Cpu, "cpu.cfs_quota_us", "", &QUOTA.to_string())?;
        } else {
            self.limit(Controller::Cpu, "", "cpu.max", &format!("{QUOTA} {PERIOD}"))?;
        }
        self.set(PIDS)
    }

    pub fn remove(&mut self, name: &str) -> Result<()> {
        let name = CString::new(name)?;
        let mut done = Ok(());
        for root in &self.hierarchies {
            // SAFETY: a descriptor that is open, and a C string.
            if unsafe { libc::unlinkat(root.fd.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) } < 0 {
                done = Err(std::io::Error::last_os_error().into());
            }
        }
        self.program = None;
        done
    }

    /// The files of a limit in both versions.
    fn limit(&self, controller: Controller, v1: &str, v2: &str, value: &str) -> Result<()> {
        let root = self.root_of(controller);
        self.write(root, if root.version == Version::V1 { v1 } else { v2 }, value.as_bytes())
    }
}

pub(super) fn open(dir: &OwnedFd, path: &CStr, flags: i32) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: a descriptor that is open, and a C string.
    match unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) } {
        -1 => Err(std::io::Error::last_os_error().into()),
        // SAFETY: the kernel has just made it for us.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// One write(2) for each value.
fn put<'a>(root: &Root, path: &CString, values: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
    write_all(&open(&root.fd, path, libc::O_WRONLY)?, values)
}

pub(super) fn write_all<'a>(file: &OwnedFd, values: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
    for value in values {
        // SAFETY: a slice, and its length.
        if unsafe { libc::write(file.as_raw_fd(), value.as_ptr().cast(), value.len()) } < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    Ok(())
}

impl Manager for Bare {
    fn create(&mut self, name: &str, pid: u32) -> Result<()> {
        self.make(name)?;
        let pid = pid.to_string();
        self.hierarchies.iter().try_for_each(|root| self.write(root, "cgroup.procs", pid.as_bytes()))
    }

    fn spawn(&mut self, program: &Program) -> Result<()> {
        let mut files = Vec::new();
        let mut unified = None;
        for root in &self.hierarchies {
            match root.version {
                Version::V1 => files.push(open(&root.fd, &self.path("cgroup.procs"), libc::O_WRONLY)?),
                Version::V2 => {
                    let name = CString::new(self.name.as_str())?;
                    unified = Some(open(&root.fd, &name, libc::O_RDONLY | libc::O_DIRECTORY)?);
                }
            }
        }
        fork_and_wait(program, unified.as_ref().map(|fd| fd.as_raw_fd()), || {
            // SAFETY: a slice, and its length.
            files.iter().all(|file| unsafe { libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1) } == 1)
        })
    }

    fn set(&mut self, pids: u64) -> Result<()> {
        self.limit(Controller::Pids, "pids.max", "pids.max", &pids.to_string())
    }

    fn allow(&mut self, minor: u32) -> Result<()> {
        if self.has_v1_devices {
            let rule = format!("b {MAJOR}:{minor} rw");
            return self.write(self.root_of(Controller::Devices), "devices.allow", rule.as_bytes());
        }
        let name = CString::new(self.name.as_str())?;
        let dir = open(&self.hierarchies[0].fd, &name, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let program = bpf::load(RULES + 1)?;
        let old = self.program.as_ref().map(|program| program.as_raw_fd());
        bpf::attach(dir.as_raw_fd(), program.as_raw_fd(), old)?;
        self.program = Some(program);
        Ok(())
    }

    fn destroy(&mut self) -> Result<()> {
        let name = std::mem::take(&mut self.name);
        self.remove(&name)
    }
}
