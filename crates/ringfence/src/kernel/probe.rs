//! What this kernel lets this process do, asked in ways that change nothing.

use rustix::io::Errno;

/// A descriptor that no process can have open: above the highest `fs.nr_open`.
const NO_FD: i32 = i32::MAX;

/// Whether clone3(2) knows `CLONE_INTO_CGROUP` (Linux 5.7) and may be called.
///
/// The kernel looks at the flags first and at the cgroup's descriptor late, so that with a bad descriptor it answers
/// EBADF where it knows the flag; EINVAL or E2BIG where not; ENOSYS where it, or a seccomp filter, has no clone3.
pub(crate) fn clone_into_cgroup() -> bool {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // Sharing everything spares the kernel copying the address space before it sees the descriptor.
    let shared = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND;
    // The structure of Linux 5.7: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
    // set_tid_size, cgroup.
    let arguments: [u64; 11] =
        [u64::from(shared.unsigned_abs()) | CLONE_INTO_CGROUP, 0, 0, 0, 0, 0, 0, 0, 0, 0, NO_FD as u64];
    // SAFETY: the arguments are a whole clone_args of the size given. No process is made, so nothing runs on this
    // stack twice: the descriptor cannot be open.
    let made = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    // EAGAIN (a limit on processes) and ENOMEM come from behind the check of the flags.
    made == -1 && matches!(last_errno(), Errno::BADF | Errno::AGAIN | Errno::NOMEM)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The size of a page in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

#[cfg(test)]
mod on_a_kernel {
    use super::*;

    #[test]
    fn probing_for_clone3_makes_no_process() {
        let children = || std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let before = children();
        clone_into_cgroup();
        assert_eq!(children(), before);
        assert!(page_size() >= 4096);
    }
}
