//! How long all requests to systemd of one call may take together.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

use crate::kernel::poll::Deadline;

thread_local! {
    static LIMIT: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// The limit that [`limit_systemd`] sets, until it is dropped.
#[derive(Debug)]
#[must_use = "the limit ends when it is dropped"]
pub struct SystemdLimit {
    before: Option<Deadline>,
    /// It is the thread's.
    _not_send: PhantomData<*const ()>,
}

/// Limits the requests to systemd that the calling thread makes: all of them together end within `timeout`. A longer limit
/// that is in force already is kept in mind until the returned one is dropped; a shorter one stays in force.
///
/// Without a limit each request may take a minute, so that a systemd that is restarted or that reloads is waited for. Calls
/// that have a timeout of their own set a limit by themselves.
pub fn limit_systemd(timeout: Duration) -> SystemdLimit {
    limit(Deadline::after(timeout))
}

pub(crate) fn limit(deadline: Deadline) -> SystemdLimit {
    let before = LIMIT.get();
    LIMIT.set(Some(before.map_or(deadline, |before| before.earlier(deadline))));
    SystemdLimit { before, _not_send: PhantomData }
}

/// The end of a request that may take so long where nothing else is said.
#[cfg(feature = "systemd")]
pub(super) fn deadline(patience: Duration) -> Deadline {
    let own = Deadline::after(patience);
    LIMIT.get().map_or(own, |limit| own.earlier(limit))
}

impl Drop for SystemdLimit {
    fn drop(&mut self) {
        LIMIT.set(self.before);
    }
}

#[cfg(all(test, feature = "systemd"))]
mod tests {
    use super::*;

    #[test]
    fn shorter_limit_is_in_force_until_it_is_dropped() {
        let seconds = |seconds| Duration::from_secs(seconds);
        let left = || deadline(seconds(60)).left();
        assert!(left() > seconds(59));
        let outer = limit_systemd(seconds(20));
        assert!(left() > seconds(19) && left() <= seconds(20));
        let inner = limit_systemd(seconds(5));
        assert!(left() <= seconds(5));
        let longer = limit_systemd(seconds(30));
        assert!(left() <= seconds(5));
        drop((longer, inner));
        assert!(left() > seconds(19));
        assert!(std::thread::spawn(move || deadline(seconds(60)).left()).join().unwrap() > seconds(59));
        drop(outer);
        assert!(left() > seconds(59));
    }
}
