//! Signal masks and handlers around a fork, by system calls: the C library's functions leave out the signals that it keeps
//! for itself, and may take a lock that another thread held when this process was forked.
//!
//! <https://man7.org/linux/man-pages/man2/rt_sigprocmask.2.html>, <https://man7.org/linux/man-pages/man2/rt_sigaction.2.html>

use std::mem::size_of;
use std::ptr::null_mut;

use rustix::io::{Errno, Result};

/// The number of the last signal (the kernel's `_NSIG`).
const LAST: i32 = 64;

/// A set of signals: bit 0 is signal 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignalSet(u64);

impl SignalSet {
    const ALL: Self = Self(u64::MAX);

    /// The set of these signals; `None` where a number is no signal.
    pub(crate) fn of(signals: impl IntoIterator<Item = i32>) -> Option<Self> {
        let bit = |signal: i32| (1..=LAST).contains(&signal).then(|| 1 << (signal - 1));
        signals.into_iter().try_fold(0, |set, signal| Some(set | bit(signal)?)).map(Self)
    }

    /// Blocks these signals for the calling thread, and no others; returns those that it blocked before. Async-signal-safe.
    pub(crate) fn block(self) -> Result<Self> {
        let mut before = 0_u64;
        let new = &raw const self.0;
        // SAFETY: two sets of the size that is given, which outlive the call.
        let done = unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, &raw mut before, size_of::<u64>())
        };
        if done == 0 { Ok(Self(before)) } else { Err(last_errno()) }
    }
}

/// All signals are blocked for this thread until it is dropped.
#[derive(Debug)]
pub(crate) struct AllBlocked {
    before: SignalSet,
}

impl AllBlocked {
    pub(crate) fn new() -> Result<Self> {
        SignalSet::ALL.block().map(|before| Self { before })
    }

    /// The signals that the thread blocked before.
    pub(crate) fn before(&self) -> SignalSet {
        self.before
    }
}

impl Drop for AllBlocked {
    fn drop(&mut self) {
        // A valid set of a valid size is never refused.
        _ = self.before.block();
    }
}

/// The kernel's `struct sigaction`: the handler comes first, and all of it is zero for `SIG_DFL`. Longer than it is anywhere.
type Action = [usize; 8];

const DEFAULT: Action = [0; 8];

/// Gives each signal that has a handler its default action; ignored signals stay ignored, as over execve(2).
///
/// # Safety
/// No handler may be needed any more. Async-signal-safe.
pub(crate) unsafe fn remove_handlers() {
    for signal in 1..=LAST {
        let mut action = DEFAULT;
        // SAFETY: the kernel writes no more than an action.
        let read = unsafe { sigaction(signal, null_mut(), &raw mut action) };
        if read && ![libc::SIG_DFL, libc::SIG_IGN].contains(&action[0]) {
            // SAFETY: as the caller promises.
            unsafe { reset(signal) };
        }
    }
}

/// Whether the kernel discards the status of this process's children: SIGCHLD is ignored, or has the flag `SA_NOCLDWAIT`.
pub(crate) fn children_are_discarded() -> bool {
    let mut action = DEFAULT;
    // SAFETY: the kernel writes no more than an action.
    let read = unsafe { sigaction(libc::SIGCHLD, null_mut(), &raw mut action) };
    let [handler, flags, ..] = action;
    // A C int in an unsigned long: no sign to extend.
    read && (handler == libc::SIG_IGN || flags & libc::SA_NOCLDWAIT as usize != 0)
}

/// Gives SIGCHLD its default action if this process ignores it, as it does when its parent did.
///
/// The kernel discards the status of the children of a process that ignores SIGCHLD, and
/// [`Cgroup::spawn`](crate::Cgroup::spawn) refuses to start any. This is for the main function of a program: the action belongs
/// to the whole process, so that the library never changes it by itself.
pub fn stop_ignoring_children() {
    if children_are_discarded() {
        // SAFETY: the default action of SIGCHLD is to do nothing, so that no code depends on the handler for its safety.
        unsafe { reset(libc::SIGCHLD) };
    }
}

/// Gives a signal its default action.
///
/// # Safety
/// A handler of it may not be needed any more. Async-signal-safe.
pub(crate) unsafe fn reset(signal: i32) {
    let default = DEFAULT;
    // SAFETY: as the caller promises. SIGKILL and SIGSTOP are refused, and have the default action already.
    unsafe { sigaction(signal, &raw const default, null_mut()) };
}

/// # Safety
/// As for rt_sigaction(2): the pointers are null or valid, and a handler can be called at any time.
unsafe fn sigaction(signal: i32, new: *const Action, old: *mut Action) -> bool {
    // SAFETY: the caller's promise; the size is the kernel's of a set of signals.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, size_of::<u64>()) == 0 }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_bits_of_its_signals() {
        assert_eq!(SignalSet::of([1, 64]), Some(SignalSet(1 << 63 | 1)));
        assert_eq!(SignalSet::of([]), Some(SignalSet(0)));
        for no_signal in [0, -1, 65, i32::MIN] {
            assert_eq!(SignalSet::of([15, no_signal]), None, "{no_signal}");
        }
    }

    #[test]
    fn the_mask_of_before_comes_back() {
        let mine = SignalSet::of([libc::SIGUSR2]).unwrap();
        let before = mine.block().unwrap();
        let all = AllBlocked::new().unwrap();
        assert_eq!(all.before(), mine);
        drop(all);
        assert_eq!(before.block().unwrap(), mine);
    }
}
