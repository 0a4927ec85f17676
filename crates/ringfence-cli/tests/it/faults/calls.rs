//! System calls: how each of them may plausibly fail.

use std::path::Path;

use nix::errno::Errno::{self, *};
use nix::libc;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is not done.
    Refused(Errno),
    /// It is done, and the kernel says so: a descriptor is closed whatever close(2) returns, and what somebody else has removed
    /// a moment before is gone.
    DoneAndYet(Errno),
}

impl Way {
    pub fn errno(self) -> Errno {
        match self {
            Self::Refused(errno) | Self::DoneAndYet(errno) => errno,
        }
    }
}

use Way::{DoneAndYet, Refused};

/// Where a call says what it is about.
#[derive(Debug, Clone, Copy)]
pub enum About {
    /// A path in this argument.
    Path(usize),
    /// A directory in this argument, a name in the next.
    At(usize),
    /// A descriptor in the first one.
    Descriptor,
    Nothing,
}

/// Calls that the command makes: number, name, what it is about, and how it may fail. Those that are not here, and those
/// without a way, cannot fail, or fail for reasons alone that are in the arguments: at these the process is killed.
const CALLS: &[(i64, &str, About, &[Way])] = &[
    (libc::SYS_open, "open", About::Path(0), OPEN),
    (libc::SYS_openat, "openat", About::At(0), OPEN),
    (libc::SYS_openat2, "openat2", About::At(0), OPEN),
    (libc::SYS_read, "read", About::Descriptor, READ),
    (libc::SYS_pread64, "pread64", About::Descriptor, READ),
    (libc::SYS_write, "write", About::Descriptor, WRITE),
    (libc::SYS_pwrite64, "pwrite64", About::Descriptor, WRITE),
    (libc::SYS_writev, "writev", About::Descriptor, WRITE),
    (libc::SYS_close, "close", About::Descriptor, &[DoneAndYet(EINTR)]),
    (libc::SYS_fsync, "fsync", About::Descriptor, &[Refused(EIO), Refused(ENOSPC), Refused(EINTR)]),
    (libc::SYS_fdatasync, "fdatasync", About::Descriptor, &[Refused(EIO), Refused(ENOSPC), Refused(EINTR)]),
    (libc::SYS_flock, "flock", About::Descriptor, &[Refused(EINTR), Refused(ENOMEM)]),
    (libc::SYS_rename, "rename", About::Path(0), RENAME),
    (libc::SYS_renameat, "renameat", About::At(0), RENAME),
    (libc::SYS_renameat2, "renameat2", About::At(0), RENAME),
    (libc::SYS_mkdir, "mkdir", About::Path(0), MAKE),
    (libc::SYS_mkdirat, "mkdirat", About::At(0), MAKE),
    (libc::SYS_rmdir, "rmdir", About::Path(0), REMOVE),
    (libc::SYS_unlink, "unlink", About::Path(0), REMOVE),
    (libc::SYS_unlinkat, "unlinkat", About::At(0), REMOVE),
    (
        libc::SYS_getdents64,
        "getdents64",
        About::Descriptor,
        &[Refused(EIO), Refused(ENOENT), Refused(ENOMEM), Refused(EINTR)],
    ),
    (libc::SYS_stat, "stat", About::Path(0), LOOK),
    (libc::SYS_fstat, "fstat", About::Descriptor, &[Refused(EIO), Refused(ENOMEM)]),
    (libc::SYS_newfstatat, "newfstatat", About::At(0), LOOK),
    (libc::SYS_statx, "statx", About::At(0), LOOK),
    (libc::SYS_statfs, "statfs", About::Path(0), LOOK),
    (libc::SYS_fstatfs, "fstatfs", About::Descriptor, &[Refused(EIO), Refused(ENOMEM)]),
    (libc::SYS_access, "access", About::Path(0), LOOK),
    (libc::SYS_faccessat, "faccessat", About::At(0), LOOK),
    (libc::SYS_faccessat2, "faccessat2", About::At(0), LOOK),
    (libc::SYS_readlink, "readlink", About::Path(0), LOOK),
    (libc::SYS_readlinkat, "readlinkat", About::At(0), LOOK),
    (libc::SYS_fchownat, "fchownat", About::At(0), LOOK),
    (
        libc::SYS_fsetxattr,
        "fsetxattr",
        About::Descriptor,
        &[Refused(EIO), Refused(ENOSPC), Refused(EACCES), Refused(ENOMEM)],
    ),
    (libc::SYS_fgetxattr, "fgetxattr", About::Descriptor, &[Refused(EIO), Refused(EACCES), Refused(ENOMEM)]),
    (
        libc::SYS_bpf,
        "bpf",
        About::Nothing,
        &[Refused(ENOMEM), Refused(EACCES), Refused(ENOENT), Refused(EINTR), Refused(EBUSY)],
    ),
    (libc::SYS_clone3, "clone3", About::Nothing, &[Refused(ENOMEM), Refused(EBUSY), Refused(EACCES)]),
    (libc::SYS_clone, "clone", About::Nothing, &[Refused(ENOMEM)]),
    (libc::SYS_poll, "poll", About::Nothing, &[Refused(EINTR), Refused(ENOMEM)]),
    (libc::SYS_ppoll, "ppoll", About::Nothing, &[Refused(EINTR), Refused(ENOMEM)]),
    (libc::SYS_nanosleep, "nanosleep", About::Nothing, &[Refused(EINTR)]),
    (libc::SYS_clock_nanosleep, "clock_nanosleep", About::Nothing, &[Refused(EINTR)]),
    (libc::SYS_sched_setaffinity, "sched_setaffinity", About::Nothing, &[Refused(ENOMEM), Refused(EPERM)]),
    (libc::SYS_sched_getaffinity, "sched_getaffinity", About::Nothing, &[Refused(ENOMEM), Refused(EPERM)]),
    // A signal to a process that is there can only be forbidden.
    (libc::SYS_kill, "kill", About::Nothing, &[Refused(EPERM)]),
    (libc::SYS_getrandom, "getrandom", About::Nothing, &[Refused(EINTR)]),
    (libc::SYS_mmap, "mmap", About::Nothing, &[Refused(ENOMEM), Refused(EACCES)]),
    (libc::SYS_mremap, "mremap", About::Nothing, &[Refused(ENOMEM)]),
    (libc::SYS_brk, "brk", About::Nothing, &[Refused(ENOMEM)]),
    (libc::SYS_mprotect, "mprotect", About::Nothing, &[Refused(ENOMEM), Refused(EACCES)]),
    (libc::SYS_munmap, "munmap", About::Nothing, &[Refused(ENOMEM)]),
    (libc::SYS_fcntl, "fcntl", About::Descriptor, &[]),
    (
        libc::SYS_pidfd_open,
        "pidfd_open",
        About::Nothing,
        &[Refused(EMFILE), Refused(ENOMEM), Refused(ENODEV)],
    ),
    (libc::SYS_socket, "socket", About::Nothing, &[Refused(EMFILE), Refused(ENOMEM), Refused(EACCES)]),
    (libc::SYS_pipe2, "pipe2", About::Nothing, &[Refused(EMFILE), Refused(ENOMEM)]),
];

const OPEN: &[Way] = &[
    Refused(EACCES),
    Refused(ENOENT),
    Refused(EMFILE),
    Refused(ENOMEM),
    Refused(EIO),
    Refused(EINTR),
    Refused(ENODEV),
];
const READ: &[Way] = &[Refused(EIO), Refused(EINTR), Refused(ENODEV), Refused(ENOMEM)];
const WRITE: &[Way] = &[
    Refused(EIO),
    Refused(ENOSPC),
    Refused(EACCES),
    Refused(EBUSY),
    Refused(EINTR),
    Refused(ENODEV),
    Refused(ENOMEM),
];
const MAKE: &[Way] = &[
    Refused(EIO),
    Refused(ENOSPC),
    Refused(EACCES),
    Refused(EBUSY),
    Refused(ENOENT),
    Refused(ENODEV),
    Refused(ENOMEM),
];
const REMOVE: &[Way] =
    &[Refused(EIO), Refused(EACCES), Refused(EBUSY), Refused(ENOMEM), DoneAndYet(ENOENT), DoneAndYet(ENODEV)];
const RENAME: &[Way] = &[Refused(EIO), Refused(ENOSPC), Refused(EACCES), Refused(EBUSY), Refused(ENOMEM)];
const LOOK: &[Way] = &[Refused(EIO), Refused(EACCES), Refused(ENOENT), Refused(ENOMEM)];

fn known(number: i64) -> Option<&'static (i64, &'static str, About, &'static [Way])> {
    CALLS.iter().find(|(known, ..)| *known == number)
}

pub fn name(number: i64) -> String {
    known(number).map_or_else(|| format!("call {number}"), |(_, name, ..)| (*name).to_owned())
}

pub fn about(number: i64) -> About {
    known(number).map_or(About::Nothing, |(_, _, about, _)| *about)
}

/// How this call may fail.
pub fn ways(number: i64, path: &str) -> Vec<Way> {
    let ways = known(number).map_or(&[][..], |(.., ways)| ways).iter();
    // Nobody removes a state, or the directories of a sandbox, but who has its lock: if they are there, they are found.
    let stays = path.ends_with(".json") || path.ends_with("/cgroup.procs") || Path::new(path).is_dir();
    ways.filter(|way| !(stays && matches!(way, Refused(ENOENT | ENODEV)))).copied().collect()
}

pub fn is_open(number: i64) -> bool {
    [libc::SYS_open, libc::SYS_openat, libc::SYS_openat2].contains(&number)
}

pub fn is_memory(number: i64) -> bool {
    [libc::SYS_mmap, libc::SYS_mremap, libc::SYS_brk, libc::SYS_mprotect, libc::SYS_munmap].contains(&number)
}
