//! What this kernel lets this process do, asked in ways that change nothing.

use std::sync::OnceLock;

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

/// Whether a child that clone3(2) makes in a cgroup gets the CPUs and memory nodes of that cgroup. Otherwise it keeps those of
/// its parent. Fixed by commit 42a11bf5c543, late in 6.3: Linux 6.4 is the first of which every candidate has it. Stable kernels
/// that have it too answer `false` all the same.
pub(crate) fn clone_applies_cpuset() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let uname = rustix::system::uname();
        is_at_least(uname.release().to_str().unwrap_or_default(), (6, 4))
    })
}

fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version >= wanted)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in [
            ("6.4.0", true),
            ("6.12.63+deb13-cloud-amd64", true),
            ("7.0-rc1", true),
            ("6.3.13", false),
            ("5.10.0-30-amd64", false),
            ("6", false),
            ("", false),
        ] {
            assert_eq!(is_at_least(release, (6, 4)), expected, "{release}");
        }
    }
}
