//! How many descriptors may be kept for later: all who keep some have a share in half of what the process may have open.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// So many descriptors that are kept, as long as it lives.
#[derive(Debug)]
pub(crate) struct Share(usize);

impl Share {
    /// `None` where more than half of `RLIMIT_NOFILE`, as it is now, would be kept by all together.
    pub(crate) fn of(number: usize) -> Option<Self> {
        let most = getrlimit(Resource::Nofile).current.map(|limit| limit / 2);
        let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
        let more = |kept: usize| kept.checked_add(number).filter(|kept| *kept <= most);
        KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(number))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.0, Ordering::Relaxed);
    }
}
