//! Waiting, always with a deadline.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// The moment at which waiting is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        let now = Instant::now();
        // A timeout that no clock can hold is a year.
        Self(now.checked_add(timeout).unwrap_or(now + Duration::from_secs(31_536_000)))
    }

    /// The same, or this long from now if that is sooner.
    #[cfg(feature = "systemd")]
    pub(crate) fn at_most(self, timeout: Duration) -> Self {
        Self(self.0.min(Self::after(timeout).0))
    }

    /// The earlier of the two.
    pub(crate) fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// Sleeps, but not beyond the deadline.
    pub(crate) fn sleep(self, pause: Duration) {
        std::thread::sleep(pause.min(self.left()));
    }
}

/// Waits for the kernel to say that a cgroup file changed (`POLLPRI`), or for `at_most`.
pub(crate) fn wait_for_change(file: impl AsFd, at_most: Duration) -> Result<(), Errno> {
    let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
    let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
