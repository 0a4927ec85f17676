//! The states of sandboxes in a directory: one file and one lock each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::ownership::is_ours;
use super::{Begun, ChangeOptions, Claim, Part, Sandbox, State, TakenCpus};
use crate::document::read_document;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{LastWord, announce};
use crate::host::Host;
use crate::kernel::poll::Deadline;
use crate::path::SandboxId;
use crate::report::Report;
use crate::resources::Resources;

/// Many that wait are not to keep the one from working that they wait for.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

const CANNOT_MAKE: &str = "cannot make the state directory: choose another one (--state-dir; without privileges it is in \
                           $XDG_RUNTIME_DIR)";

/// A directory of states, readable by its owner alone. A state is replaced by a rename, never written in place.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// A sandbox under its lock: no other process acts on it until this is dropped.
#[derive(Debug)]
pub struct Entry {
    directory: PathBuf,
    id: SandboxId,
    lock: File,
}

impl Store {
    /// A store in this directory, which is made with the first entry.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Locks a sandbox, whether there is a state of it or not.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] when another process holds it for longer than `timeout`.
    pub fn lock(&self, id: &SandboxId, timeout: Duration) -> Result<Entry> {
        let path = self.directory.join(format!("{id}.lock"));
        let (deadline, mut pause) = (Deadline::after(timeout), Duration::from_millis(2));
        is_ours(&self.directory)?;
        loop {
            match DirBuilder::new().recursive(true).mode(0o700).create(&self.directory) {
                // It was there, and the last entry's process removed it before it was seen to be a directory.
                Err(error)
                    if error.kind() == std::io::ErrorKind::AlreadyExists
                        && self.directory.symlink_metadata().is_err()
                        && !deadline.is_over() =>
                {
                    continue;
                }
                made => made.map_err(|error| io_error(CANNOT_MAKE, &self.directory, error))?,
            }
            let file = match File::options().create(true).truncate(false).write(true).mode(0o600).open(&path)
            {
                // The last entry's process has just removed the directory.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !deadline.is_over() => continue,
                opened => opened.map_err(|error| io_error("cannot open the lock", &path, error))?,
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_still(&file, &path) => {
                    return Ok(Entry { directory: self.directory.clone(), id: id.clone(), lock: file });
                }
                // The one before us removed the sandbox and the lock with it.
                Ok(()) => continue,
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(Error::kernel("cannot lock", &path, errno)),
            }
            if deadline.is_over() {
                let why = format!("another process is at work on this sandbox; not free within {timeout:?}");
                return Err(Error::new(ErrorKind::Locked, why).with_value(id).with_path(&path));
            }
            deadline.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The state of a sandbox, as it was last written. Needs no lock: a state is always whole.
    pub fn load(&self, id: &SandboxId) -> Result<Option<State>> {
        load(&self.directory, id)
    }

    /// The sandboxes of which there is a state, in order.
    pub fn ids(&self) -> Result<Vec<SandboxId>> {
        self.named("json")
    }

    /// Removes locks and halves of states that killed processes left.
    pub fn sweep(&self) -> Result<()> {
        let left: BTreeSet<_> = self.named("lock")?.into_iter().chain(self.named("tmp")?).collect();
        for id in left {
            match self.lock(&id, Duration::ZERO) {
                // Where there is no state, dropping it removes the rest.
                Ok(entry) => _ = fs::remove_file(entry.temporary()),
                Err(error) if error.kind() == ErrorKind::Locked => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn named(&self, suffix: &str) -> Result<Vec<SandboxId>> {
        is_ours(&self.directory)?;
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("cannot list the state directory", &self.directory, error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry =
                entry.map_err(|error| io_error("cannot list the state directory", &self.directory, error))?;
            if let Some(id) =
                entry.file_name().to_str().and_then(|name| name.strip_suffix(suffix)?.strip_suffix('.'))
                && let Ok(id) = id.parse()
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

impl Entry {
    /// The sandbox's ID.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The state as it was last written.
    pub fn load(&self) -> Result<Option<State>> {
        load(&self.directory, &self.id)
    }

    fn temporary(&self) -> PathBuf {
        self.directory.join(format!("{}.tmp", self.id))
    }

    /// Writes the state: to a temporary file, synced, then renamed over the old one.
    pub fn save(&self, state: &State) -> Result<()> {
        let temporary = self.temporary();
        let path = self.directory.join(format!("{}.json", self.id));
        let failed = |error: std::io::Error| io_error("cannot write the state", &path, error);
        let text = serde_json::to_vec_pretty(state).map_err(|error| failed(error.into()))?;
        let directory = retried(|| File::open(&self.directory)).map_err(failed)?;
        let write = || {
            let mut options = File::options();
            options.create(true).truncate(true).write(true).mode(0o600);
            let mut file = retried(|| options.open(&temporary))?;
            file.write_all(&text)?;
            retried(|| file.sync_all())?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            _ = fs::remove_file(&temporary);
            failed(error)
        })?;
        retried(|| directory.sync_all()).map_err(failed)
    }

    /// [`Sandbox::change_with`], recorded before the kernel is changed and after: whenever this process may die, the
    /// next one under the lock finds what takes the change back ([`Sandbox::settle`]). The state is written.
    ///
    /// # Errors
    /// Those of [`Sandbox::change_with`], and what cannot be recorded; everything is then as it was.
    pub fn change(&self, sandbox: &Sandbox, change: &Resources, options: ChangeOptions) -> Result<Report> {
        self.recorded(sandbox, |record| sandbox.change_ahead(change, options, Some(record)))
    }

    /// The same for [`Sandbox::change_claim`].
    ///
    /// # Errors
    /// Those of [`Sandbox::change_claim`], and what cannot be recorded; everything is then as it was.
    pub fn change_claim(
        &self,
        sandbox: &Sandbox,
        name: &str,
        claim: Claim<'_>,
        options: ChangeOptions,
    ) -> Result<Report> {
        self.recorded(sandbox, |record| sandbox.change_claim_ahead(name, claim, options, Some(record)))
    }

    /// The same for [`Sandbox::join_part`].
    ///
    /// # Errors
    /// Those of [`Sandbox::join_part`], and what cannot be recorded; the processes are then where they were.
    pub fn join_part(&self, sandbox: &Sandbox, part: Option<Part>, pids: &[u32]) -> Result<()> {
        self.recorded(sandbox, |record| {
            record(Begun::of_processes(pids)?)?;
            sandbox.join_part(part, pids)
        })
    }

    /// [`Sandbox::settle`], where a process died while it changed the sandbox. The state is written.
    ///
    /// # Errors
    /// Those of [`Sandbox::settle`].
    pub fn settle(&self, sandbox: &Sandbox) -> Result<Report> {
        if !sandbox.is_unsettled() {
            return Ok(Report::default());
        }
        let report = sandbox.settle()?;
        self.save(&sandbox.state())?;
        Ok(report)
    }

    fn recorded<T>(
        &self,
        sandbox: &Sandbox,
        act: impl FnOnce(&dyn Fn(Begun) -> Result<()>) -> Result<T>,
    ) -> Result<T> {
        self.settle(sandbox)?;
        let before = sandbox.state();
        let begun = RefCell::new(Begun::default());
        let done = act(&|more| {
            let mut begun = begun.borrow_mut();
            begun.add(more);
            self.save(&State { begun: Some(begun.clone()), ..before.clone() })
        });
        let error = match done.and_then(|done| self.save(&sandbox.state()).map(|()| done)) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        // It may have been taken back by now, and be it that only this could not be recorded.
        let back = sandbox.go_back(before, begun.into_inner());
        Err(match back.and_then(|_| self.save(&sandbox.state())) {
            Ok(()) => error,
            Err(also) => error.with_source(also),
        })
    }

    /// [`Sandbox::pin_vcpus`] among all sandboxes of the store: nobody else chooses CPUs meanwhile, and what is chosen is
    /// recorded before it is done. Who has no process any more holds no CPU. The state is written.
    ///
    /// # Errors
    /// Those of [`Sandbox::pin_vcpus`]; [`ErrorKind::Locked`] when another process chooses for longer than `timeout`;
    /// [`ErrorKind::State`] if the state of another sandbox cannot be read.
    pub fn pin_vcpus(&self, host: &Host, sandbox: &Sandbox, timeout: Duration) -> Result<Report> {
        let _choosing = if sandbox.is_pinned() { Some(self.lock_all(timeout)?) } else { None };
        let taken = if sandbox.is_pinned() { self.taken_cpus(host)? } else { TakenCpus::new() };
        let done = sandbox.pin_with(&taken, |state| self.save(state));
        self.save(&sandbox.state())?;
        done
    }

    /// The CPUs to which vCPUs of the other sandboxes are pinned.
    pub fn taken_cpus(&self, host: &Host) -> Result<TakenCpus> {
        let mut taken = TakenCpus::new();
        for id in Store::new(&self.directory).ids()?.into_iter().filter(|id| *id != self.id) {
            let Some(state) = load(&self.directory, &id)? else { continue };
            let Some(pin) = state.pin.filter(|_| !state.pinned.is_empty()) else { continue };
            let cpus = match Sandbox::restore(host, state).and_then(|sandbox| sandbox.pinned_cpus()) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                cpus => cpus?,
            };
            taken.add(id.as_str(), pin, cpus);
        }
        Ok(taken)
    }

    /// A lock on the directory itself.
    fn lock_all(&self, timeout: Duration) -> Result<File> {
        let deadline = Deadline::after(timeout);
        let directory = File::open(&self.directory)
            .map_err(|error| io_error("cannot open the state directory", &self.directory, error))?;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(directory),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) if !deadline.is_over() => {}
                Err(Errno::WOULDBLOCK) => {
                    let why = format!("another process chooses CPUs; not done within {timeout:?}");
                    return Err(Error::new(ErrorKind::Locked, why).with_path(&self.directory));
                }
                Err(errno) => return Err(Error::kernel("cannot lock", &self.directory, errno)),
            }
            deadline.sleep(Duration::from_millis(2));
        }
    }

    /// From now on those that watch the store are told what was counted in the sandbox, before its cgroup is removed.
    pub fn tell_watchers_of(&self, sandbox: &Sandbox) {
        let (directory, id) = (self.directory.clone(), self.id.clone());
        sandbox.before_removal(Arc::new(move |word| {
            // That it is removed is told with its state.
            if matches!(word, LastWord::Counted(_)) {
                announce(&directory, &id, word);
            }
        }));
    }

    /// Tells them what was counted until now, before the cgroup goes that nothing holds any more.
    pub fn tell_watchers_now(&self, sandbox: &Sandbox) {
        sandbox.last_counts().for_each(|last| announce(&self.directory, &self.id, LastWord::Counted(last)));
    }

    /// Removes the state, and tells those that watch the store; the lock goes when this is dropped.
    pub fn remove(self) -> Result<()> {
        for suffix in ["json", "tmp"] {
            let path = self.directory.join(format!("{}.{suffix}", self.id));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("cannot remove the state", &path, error));
                }
                _ => {}
            }
        }
        announce(&self.directory, &self.id, LastWord::Removed);
        Ok(())
    }
}

/// An entry without a state leaves no lock behind, and the last one no directory.
impl Drop for Entry {
    fn drop(&mut self) {
        let lock = self.directory.join(format!("{}.lock", self.id));
        let is_forgotten = matches!(self.directory.join(format!("{}.json", self.id)).try_exists(), Ok(false));
        if is_forgotten && is_still(&self.lock, &lock) {
            // One that was killed while it wrote its first state leaves the temporary file.
            _ = fs::remove_file(self.temporary());
            _ = fs::remove_file(lock);
            _ = fs::remove_dir(&self.directory);
        }
    }
}

/// Whether the path still names this file.
fn is_still(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Again where a signal came in between.
fn retried<T>(mut act: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match act() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn load(directory: &Path, id: &SandboxId) -> Result<Option<State>> {
    is_ours(directory)?;
    let path = directory.join(format!("{id}.json"));
    let text = match fs::File::open(&path) {
        Ok(file) => read_document(file).map_err(|error| {
            Error::new(ErrorKind::State, error.message().to_owned()).with_path(&path).with_source(error)
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("cannot read the state", &path, error)),
    };
    let state: State = serde_json::from_str(&text).map_err(|error| {
        let why = format!(
            "the state of the sandbox cannot be read ({error}); remove the file to forget the sandbox"
        );
        Error::new(ErrorKind::State, why).with_path(&path)
    })?;
    state.check().map_err(|error| error.with_path(&path))?;
    Ok(Some(state))
}

fn io_error(what: &'static str, path: &Path, error: std::io::Error) -> Error {
    let named = Error::new(ErrorKind::State, what).with_path(path);
    match Errno::from_io_error(&error) {
        Some(errno) => named.with_errno(errno),
        None => named.with_source(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_may_go_with_one_entry_while_another_is_made() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::new(scratch.path().join("states"));
        let come_and_go = |name: &str| {
            let id = name.parse().unwrap();
            for _ in 0..2_000 {
                store.lock(&id, Duration::from_secs(30)).unwrap();
            }
        };
        std::thread::scope(|threads| {
            for name in ["one", "two", "three"] {
                let come_and_go = &come_and_go;
                threads.spawn(move || come_and_go(name));
            }
        });
        assert!(!store.directory().exists());
    }
}
