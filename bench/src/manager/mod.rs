//! The managers that are measured, each of which does the same work.

pub mod bare;
pub mod bpf;
mod careful;
pub mod ours;
pub mod peers;

use std::ffi::CString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

use ringfence::Host;

use crate::Result;

pub const MEMORY: u64 = 256 << 20;
pub const QUOTA: u64 = 50_000;
pub const PERIOD: u64 = 100_000;
pub const PIDS: u64 = 64;
/// `b 240:0 rw` and so on.
pub const MAJOR: u32 = 240;
pub const RULES: u32 = 10;

/// One life of a sandbox, in stages.
pub trait Manager {
    /// Makes the cgroup, with limits on CPU time, memory and tasks and ten rules for devices, and joins a process.
    fn create(&mut self, name: &str, pid: u32) -> Result<()>;
    /// Starts a program inside, from its first instruction on, and waits for its end.
    fn spawn(&mut self, program: &Program) -> Result<()>;
    /// Changes the limit on tasks.
    fn set(&mut self, pids: u64) -> Result<()>;
    /// Allows one device more, `b 240:MINOR rw`.
    fn allow(&mut self, minor: u32) -> Result<()>;
    /// Removes the cgroup, which is empty.
    fn destroy(&mut self) -> Result<()>;
}

/// By name; the first one is what the others are compared with. For a profile, some of them.
pub fn all(host: &Host) -> Vec<(String, Box<dyn Manager>)> {
    let of = |name: &str| format!("{name} {}", crate::version(name));
    let mut all: Vec<(String, Box<dyn Manager>)> = vec![
        ("bare system calls".into(), Box::new(bare::Bare::new(host))),
        ("bare, with checks".into(), Box::new(careful::Careful::new(host))),
        ("ringfence".into(), Box::new(ours::Ours::new(host))),
        (of("cgroups-rs"), Box::new(peers::Kata::default())),
        (of("libcgroups"), Box::new(peers::Youki::default())),
    ];
    if let Ok(only) = std::env::var("RINGFENCE_BENCH_ONLY") {
        all.retain(|(name, _)| name.starts_with(&only));
    }
    all
}

/// The smallest program there is: it exits with its third instruction, so that the time to its end is that to its first.
pub struct Program {
    pub path: PathBuf,
    pub c_path: CString,
}

impl Program {
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("rf-bench-exit-{}", std::process::id()));
        let mut elf: Vec<u8> = Vec::new();
        let size: u64 = 64 + 56 + 9;
        let start: u64 = 0x40_0000;
        elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        // An executable for x86-64, with one program header and no sections.
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        [start + 120, 64, 0].iter().for_each(|number| elf.extend(number.to_le_bytes()));
        elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        // Load all of it, to be read and executed.
        elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        [0, start, start, size, size, 4096].iter().for_each(|number| elf.extend(number.to_le_bytes()));
        // mov eax, 60; xor edi, edi; syscall
        elf.extend([0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
        let mut file =
            std::fs::File::options().write(true).create(true).truncate(true).mode(0o700).open(&path)?;
        file.write_all(&elf)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o700))?;
        Ok(Self { c_path: CString::new(path.as_os_str().as_bytes())?, path })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

/// Forks, does something in the child, executes the program there, and waits for its end.
pub fn fork_and_wait(program: &Program, unified: Option<i32>, inside: impl FnOnce() -> bool) -> Result<()> {
    let argv = [program.c_path.as_ptr(), std::ptr::null()];
    let mut arguments = [0_u64; 11];
    arguments[4] = libc::SIGCHLD as u64;
    if let Some(cgroup) = unified {
        arguments[0] = 1 << 33; // CLONE_INTO_CGROUP
        arguments[10] = cgroup as u64;
    }
    // SAFETY: as fork(2): this process has one thread, and the child's memory is its own.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) } as i32;
    match pid {
        0 => {
            if inside() {
                // SAFETY: a C string and a list of them that a null pointer ends.
                unsafe { libc::execve(argv[0], argv.as_ptr(), argv.as_ptr().add(1)) };
            }
            // SAFETY: it does not return.
            unsafe { libc::_exit(1) }
        }
        -1 => Err(std::io::Error::last_os_error().into()),
        pid => {
            let mut status = 0;
            // SAFETY: a child of ours, and a number to be written to.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if status == 0 { Ok(()) } else { Err(format!("the program ended with {status}").into()) }
        }
    }
}
