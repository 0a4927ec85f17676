//! What is known of a sandbox, behind two locks: one for the operation that is at work on it, which may take long, and one for
//! what readers are told, which is held for no system call.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::State;

/// The state of a sandbox.
#[derive(Debug)]
pub(super) struct Record {
    /// One operation at a time.
    turn: Mutex<()>,
    known: Mutex<Arc<State>>,
}

impl Record {
    pub(super) fn new(state: State) -> Self {
        Self { turn: Mutex::new(()), known: Mutex::new(Arc::new(state)) }
    }

    /// The state as the last operation has left it. Waits for none that is at work.
    pub(super) fn known(&self) -> Arc<State> {
        Arc::clone(&self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state for an operation, which waits for the one before it.
    pub(super) fn lock(&self) -> Turn<'_> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { record: self, state: self.known(), is_changed: false, _turn: turn }
    }
}

/// An operation's turn. What it changes of the state is known when it ends.
pub(super) struct Turn<'a> {
    record: &'a Record,
    state: Arc<State>,
    is_changed: bool,
    _turn: MutexGuard<'a, ()>,
}

impl Deref for Turn<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.is_changed = true;
        Arc::make_mut(&mut self.state)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_changed {
            let mut known = self.record.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.clone_from(&self.state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use crate::host::Host;
    use crate::sandbox::{Sandbox, SandboxConfig};
    use crate::skip::skip;
    use crate::{ProcessIdentity, Remaining, Status};

    #[test]
    fn readers_wait_for_no_operation_and_see_what_the_last_one_left() {
        let host = Host::detect().unwrap();
        let name = format!("/rf-t-{}-readers", std::process::id());
        let config = SandboxConfig::new(name.parse().unwrap());
        let sandbox = match Sandbox::create(&host, &config) {
            Ok((sandbox, _)) if sandbox.held().is_some_and(|cgroup| cgroup.exists()) => sandbox,
            _ => return skip("no cgroup can be made here"),
        };
        let holder = ProcessIdentity::of(std::process::id());
        let mut turn = sandbox.locked();
        turn.holder.clone_from(&holder);
        let (told, hear) = mpsc::channel();
        let found = std::thread::scope(|scope| {
            scope.spawn(|| {
                let status = sandbox.status().unwrap();
                let all = (sandbox.counts(), sandbox.processes(), sandbox.paths(), sandbox.devices());
                let more =
                    (sandbox.claims(), sandbox.is_unsettled(), sandbox.stats_reader(), sandbox.tasks(true));
                drop((all, more));
                told.send((status, sandbox.state().holder))
            });
            let found = hear.recv_timeout(Duration::from_secs(20));
            drop(turn);
            found
        });
        let (status, before) = found.expect("a reader waits for the operation");
        assert_eq!((status, before), (Status::Empty, None));
        assert_eq!(sandbox.state().holder, holder);
        sandbox.destroy(Remaining::Refuse, Duration::from_secs(10)).unwrap();
    }
}
