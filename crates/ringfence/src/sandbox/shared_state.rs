//! The state of a sandbox in memory, with two locks: operations take the first one for as long as they need, and readers
//! only the second one, which is never held during a system call.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::State;

/// The state of a sandbox, shared by one operation at a time and any number of readers.
#[derive(Debug)]
pub(super) struct SharedState {
    /// Held by the operation that is running.
    operation: Mutex<()>,
    snapshot: Mutex<Arc<State>>,
}

impl SharedState {
    pub(super) fn new(state: State) -> Self {
        Self { operation: Mutex::new(()), snapshot: Mutex::new(Arc::new(state)) }
    }

    /// Returns the state that the last finished operation left. Does not wait for a running operation.
    pub(super) fn snapshot(&self) -> Arc<State> {
        Arc::clone(&self.snapshot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the running operation to finish and starts the next one.
    pub(super) fn lock(&self) -> StateGuard<'_> {
        let operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        StateGuard { shared: self, state: self.snapshot(), _operation: operation }
    }
}

/// The state during an operation. Readers see the changes when the guard is dropped.
pub(super) struct StateGuard<'a> {
    shared: &'a SharedState,
    state: Arc<State>,
    _operation: MutexGuard<'a, ()>,
}

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        Arc::make_mut(&mut self.state)
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        let mut snapshot = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.clone_from(&self.state);
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
    fn readers_do_not_wait_for_a_running_operation() {
        let host = Host::detect().unwrap();
        let name = format!("/rf-t-{}-readers", std::process::id());
        let config = SandboxConfig::new(name.parse().unwrap());
        let sandbox = match Sandbox::create(&host, &config) {
            Ok((sandbox, _)) if sandbox.held().is_some_and(|cgroup| cgroup.exists()) => sandbox,
            _ => return skip("no cgroup can be made here"),
        };
        let holder = ProcessIdentity::of(std::process::id());
        let mut guard = sandbox.locked();
        guard.holder.clone_from(&holder);
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
            drop(guard);
            found
        });
        let (status, before) = found.expect("a reader waits for the operation");
        assert_eq!((status, before), (Status::Empty, None));
        assert_eq!(sandbox.state().holder, holder);
        sandbox.destroy(Remaining::Refuse, Duration::from_secs(10)).unwrap();
    }
}
