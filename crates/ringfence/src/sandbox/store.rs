//! The states of sandboxes in a directory: one file and one lock each.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::state_dir::StateDir;
use super::{Begun, ChangeOptions, Claim, Part, Sandbox, State, TakenCpus};
use crate::cgroup::mark::Identity;
use crate::cgroup::refuse_system;
use crate::document::read_document;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{LastWord, Lifetime, announce};
use crate::host::Host;
use crate::kernel::poll::Deadline;
use crate::path::SandboxId;
use crate::report::Report;
use crate::resources::Resources;

/// Many that wait are not to keep the one from working that they wait for.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// How long another process may hold the lock on the whole directory, where nothing depends on having it.
const LONGEST_LOCK: Duration = Duration::from_secs(1);

/// The name of the link that holds the store's random identity. Files of sandboxes end in `.json`, `.lock` or `.tmp`.
const IDENTITY: &str = ".identity";

/// A directory of states, readable by its owner alone. A state is replaced by a rename, never written in place.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// A sandbox under its lock: no other process acts on it until this is dropped.
#[derive(Debug)]
pub struct Entry {
    directory: Arc<StateDir>,
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
    /// [`ErrorKind::Locked`] when another process holds it for longer than `timeout`; [`ErrorKind::State`] if somebody else
    /// could exchange the directory.
    pub fn lock(&self, id: &SandboxId, timeout: Duration) -> Result<Entry> {
        let (deadline, mut pause) = (Deadline::after(timeout), Duration::from_millis(2));
        loop {
            let directory = StateDir::make(&self.directory)?;
            let (file, name) = match open_lock(&directory, id) {
                // The last entry's process has just removed the lock, or the directory.
                Err(Errno::NOENT | Errno::EXIST) if !deadline.is_over() => continue,
                opened => {
                    opened.map_err(|errno| directory.failed("cannot open the lock", &lock_name(id), errno))?
                }
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_still(&file, &directory, &name) => {
                    let directory = Arc::new(directory);
                    return Ok(Entry { directory, id: id.clone(), lock: file });
                }
                // The one before us removed the sandbox and the lock with it.
                Ok(()) => continue,
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(directory.failed("cannot lock", &name, errno)),
            }
            if deadline.is_over() {
                let why = format!("another process is at work on this sandbox; not free within {timeout:?}");
                let path = self.directory.join(&*name);
                return Err(Error::new(ErrorKind::Locked, why).with_value(id).with_path(path));
            }
            deadline.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The state of a sandbox, as it was last written. Needs no lock: a state is always whole.
    pub fn load(&self, id: &SandboxId) -> Result<Option<State>> {
        StateDir::open(&self.directory)?.map_or(Ok(None), |directory| load(&directory, id))
    }

    /// The sandboxes of which there is a state, in order.
    pub fn ids(&self) -> Result<Vec<SandboxId>> {
        StateDir::open(&self.directory)?.map_or(Ok(Vec::new()), |directory| ids(&directory, "json"))
    }

    /// The random identity by which this store's sandboxes are marked; `None` for a store without any.
    pub(super) fn identity(&self) -> Result<Option<Identity>> {
        let Some(directory) = StateDir::open(&self.directory)? else { return Ok(None) };
        let decided = directory.decided(IDENTITY);
        let text = decided.map_err(|errno| directory.failed("cannot read the identity", IDENTITY, errno))?;
        text.map(|text| text.parse()).transpose()
    }

    /// Removes the directory, if nothing of a sandbox is in it.
    pub(crate) fn remove_if_unused(&self) {
        if let Ok(Some(directory)) = StateDir::open(&self.directory) {
            directory.remove_if_unused();
        }
    }

    /// Removes locks and halves of states that killed processes left.
    pub fn sweep(&self) -> Result<()> {
        let Some(directory) = StateDir::open(&self.directory)? else { return Ok(()) };
        let mut left = ids(&directory, "lock")?;
        left.extend(ids(&directory, "tmp")?);
        left.sort();
        left.dedup();
        for id in left {
            match self.lock(&id, Duration::ZERO) {
                // Where there is no state, dropping it removes the rest.
                Ok(entry) => _ = entry.directory.remove(&entry.temporary()),
                Err(error) if error.kind() == ErrorKind::Locked => {}
                Err(error) => return Err(error),
            }
        }
        let names = directory.names();
        for name in names.map_err(|errno| directory.failed("cannot list the state directory", "", errno))? {
            let Ok(name) = String::from_utf8(name) else { continue };
            let is_unit = name.ends_with(".scope") || name.ends_with(".slice");
            if let Some(owner) = directory.decided(&name).ok().flatten().filter(|_| is_unit)
                && !has_unit(&directory, &owner, &name)?
            {
                _ = remove_claim(&directory, &name, &owner);
            }
        }
        Ok(())
    }
}

impl StateDir {
    fn failed(&self, what: &'static str, name: &str, errno: Errno) -> Error {
        Error::kernel(what, self.path().join(name), errno).with_kind(ErrorKind::State)
    }

    /// A lock on the directory itself, for what concerns all sandboxes.
    fn lock_all(&self, how: FlockOperation) -> Result<File, Errno> {
        let file = self.to_lock()?;
        rustix::fs::flock(&file, how).map(|()| file)
    }

    /// The lock on the directory itself; `None` if another process holds it for long.
    fn alone(&self) -> Option<File> {
        let deadline = Deadline::after(LONGEST_LOCK);
        loop {
            match self.lock_all(FlockOperation::NonBlockingLockExclusive) {
                Ok(locked) => return Some(locked),
                Err(Errno::WOULDBLOCK | Errno::INTR) if !deadline.is_over() => {
                    deadline.sleep(Duration::from_millis(1));
                }
                Err(_) => return None,
            }
        }
    }

    /// Removes the identity of the store if `record` is its last record and about to be removed. Whoever makes a sandbox at this
    /// moment puts it back.
    fn forget_identity(&self, record: &str) {
        let Some(_alone) = self.alone() else { return };
        let is_other = |name: &Vec<u8>| name.ends_with(b".json") && name != record.as_bytes();
        if self.names().is_ok_and(|names| !names.iter().any(is_other)) {
            _ = self.remove(IDENTITY);
        }
    }

    /// Removes the directory and the identity of the store, if nothing else is in it.
    fn remove_if_unused(&self) {
        let Some(_alone) = self.alone() else { return };
        if self.names().is_ok_and(|names| names.iter().all(|name| name == IDENTITY.as_bytes())) {
            _ = self.remove(IDENTITY);
            self.remove_itself();
        }
    }
}

/// Whether a unit that is claimed for a sandbox is really its: the record says so, or somebody is at work on it.
fn has_unit(directory: &StateDir, owner: &str, unit: &str) -> Result<bool> {
    let Ok(id) = owner.parse::<SandboxId>() else { return Ok(false) };
    // The claim comes before the record.
    if let Ok(lock) = directory.open_file(&lock_name(&id), OFlags::WRONLY)
        && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
    {
        return Ok(true);
    }
    Ok(load(directory, &id)?.is_some_and(|state| state.units().iter().any(|own| own == unit)))
}

/// Removes the claim to a unit whose claimant died before it was recorded, or whose record was lost.
fn remove_claim(directory: &StateDir, unit: &str, owner: &str) -> Result<(), Errno> {
    let _alone = directory.lock_all(FlockOperation::LockExclusive)?;
    if directory.decided(unit)?.as_deref() == Some(owner) {
        directory.remove(unit)?;
    }
    Ok(())
}

/// Opens the file to lock for a sandbox, and creates it if needed. On a read-only file system, where nobody can create one,
/// the record is locked instead, or the directory if there is no record.
fn open_lock(directory: &StateDir, id: &SandboxId) -> Result<(File, String), Errno> {
    let name = lock_name(id);
    let opened = match directory.open_file(&name, OFlags::WRONLY) {
        Err(Errno::NOENT) => directory.make_file(&name),
        opened => opened,
    };
    if !matches!(opened, Err(Errno::ROFS)) {
        return opened.map(|file| (file, name));
    }
    let record = record_name(id);
    match directory.read(&record) {
        Err(Errno::NOENT) => directory.to_lock().map(|file| (file, ".".to_owned())),
        opened => opened.map(|file| (file, record)),
    }
}

fn record_name(id: &SandboxId) -> String {
    format!("{id}.json")
}

fn lock_name(id: &SandboxId) -> String {
    format!("{id}.lock")
}

/// The IDs of which there is a file with this suffix.
fn ids(directory: &StateDir, suffix: &str) -> Result<Vec<SandboxId>> {
    let names = directory.names();
    let names = names.map_err(|errno| directory.failed("cannot list the state directory", "", errno))?;
    let id = |name: Vec<u8>| {
        let name = String::from_utf8(name).ok()?;
        name.strip_suffix(suffix)?.strip_suffix('.')?.parse().ok()
    };
    let mut ids: Vec<SandboxId> = names.into_iter().filter_map(id).collect();
    ids.sort();
    Ok(ids)
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

    fn named(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.id)
    }

    fn temporary(&self) -> String {
        self.named("tmp")
    }

    /// Writes the state: to a temporary file, synced, then renamed over the old one.
    pub fn save(&self, state: &State) -> Result<()> {
        let name = record_name(&self.id);
        let failed = |error: std::io::Error| {
            io_error("cannot write the state", &self.directory.path().join(&name), error)
        };
        let text = serde_json::to_vec_pretty(state).map_err(|error| failed(error.into()))?;
        self.directory.replace(&name, &self.temporary(), &text).map_err(failed)
    }

    /// The random identity of the store, made with its first sandbox.
    pub(super) fn identity(&self) -> Result<Identity> {
        let failed = |errno| self.directory.failed("cannot make the identity of the store", IDENTITY, errno);
        let new = Identity::random()?;
        match self.directory.decide(IDENTITY, &new.to_string()).map_err(failed)? {
            Ok(()) => Ok(new),
            Err(there) => there.parse(),
        }
    }

    /// Puts the identity back that went with the last record of others, after this one was written.
    pub(super) fn keep_identity(&self, identity: Identity) {
        _ = self.directory.decide(IDENTITY, &identity.to_string());
    }

    /// Claims a unit of systemd for this sandbox, before it starts, by a link of the unit's name that leads to the ID: no
    /// other sandbox of the store can have it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if another sandbox has it.
    pub(super) fn claim_unit(&self, unit: &str) -> Result<()> {
        let failed = |errno| self.directory.failed("cannot record the unit", unit, errno);
        loop {
            let decided = self.directory.decide(unit, self.id.as_str()).map_err(failed)?;
            let Err(owner) = decided else { return Ok(()) };
            if owner == self.id.as_str() {
                return Ok(());
            }
            if has_unit(&self.directory, &owner, unit)? {
                let why = format!("this unit is already that of the sandbox {owner:?}: choose another path");
                return Err(Error::new(ErrorKind::AlreadyExists, why).with_value(unit));
            }
            remove_claim(&self.directory, unit, &owner).map_err(failed)?;
        }
    }

    /// Gives the units of a sandbox back that is forgotten.
    pub(super) fn release_units(&self, units: &[String]) {
        for unit in units {
            if self.directory.decided(unit).is_ok_and(|owner| owner.as_deref() == Some(self.id.as_str())) {
                _ = self.directory.remove(unit);
            }
        }
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

    /// The same for [`Sandbox::join_part`], or with `force` for [`Sandbox::join_part_forced`].
    ///
    /// # Errors
    /// Those of [`Sandbox::join_part`], and what cannot be recorded; the processes are then where they were.
    pub fn join_part(&self, sandbox: &Sandbox, part: Option<Part>, pids: &[u32], force: bool) -> Result<()> {
        if !force {
            refuse_system(pids)?;
        }
        self.recorded(sandbox, |record| {
            record(Begun::of_processes(pids)?)?;
            sandbox.join_part_forced(part, pids)
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
        for id in ids(&self.directory, "json")?.into_iter().filter(|id| *id != self.id) {
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
        loop {
            match self.directory.lock_all(FlockOperation::NonBlockingLockExclusive) {
                Ok(locked) => return Ok(locked),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) if !deadline.is_over() => {}
                Err(Errno::WOULDBLOCK) => {
                    let why = format!("another process chooses CPUs; not done within {timeout:?}");
                    return Err(Error::new(ErrorKind::Locked, why).with_path(self.directory.path()));
                }
                Err(errno) => return Err(self.directory.failed("cannot lock", "", errno)),
            }
            deadline.sleep(Duration::from_millis(2));
        }
    }

    /// From now on those that watch the store are told what was counted in the sandbox, before its cgroup is removed.
    pub fn tell_watchers_of(&self, sandbox: &Sandbox) {
        let (directory, id) = (Arc::downgrade(&self.directory), self.id.clone());
        let lifetime = Arc::downgrade(&self.directory) as Lifetime;
        let hearer = move |word| {
            // That it is removed is told with its state.
            if let (Some(directory), LastWord::Counted(_)) = (directory.upgrade(), word) {
                announce(&directory.by_descriptor(), &id, word);
            }
        };
        sandbox.before_removal(lifetime, Arc::new(hearer));
    }

    /// Tells them what was counted until now, before the cgroup goes that nothing holds any more.
    pub fn tell_watchers_now(&self, sandbox: &Sandbox) {
        let directory = self.directory.by_descriptor();
        sandbox.last_counts().for_each(|last| announce(&directory, &self.id, LastWord::Counted(last)));
    }

    /// Removes the state, and tells those that watch the store; the lock goes when this is dropped.
    pub fn remove(self) -> Result<()> {
        self.forget()
    }

    /// [`Entry::remove`], and keeps the lock.
    pub(super) fn forget(&self) -> Result<()> {
        // What cannot be read claims nothing that can be known.
        let units = self.load().ok().flatten().map(|state| state.units()).unwrap_or_default();
        // First: a process that dies in between leaves the record, by which all of this is done again.
        self.directory.forget_identity(&record_name(&self.id));
        for name in [record_name(&self.id), self.temporary()] {
            match self.directory.remove(&name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.directory.failed("cannot remove the state", &name, errno)),
            }
        }
        self.release_units(&units);
        announce(&self.directory.by_descriptor(), &self.id, LastWord::Removed);
        Ok(())
    }
}

/// An entry without a state leaves no lock behind, and the last one no directory.
impl Drop for Entry {
    fn drop(&mut self) {
        let lock = lock_name(&self.id);
        let has_none = self.directory.stat(&record_name(&self.id)).is_err_and(|errno| errno == Errno::NOENT);
        if has_none && is_still(&self.lock, &self.directory, &lock) {
            // One that was killed while it wrote its first state leaves the temporary file.
            _ = self.directory.remove(&self.temporary());
            _ = self.directory.remove(&lock);
            self.directory.remove_itself();
        }
    }
}

/// Whether the name still is that of this file.
fn is_still(file: &File, directory: &StateDir, name: &str) -> bool {
    match (rustix::fs::fstat(file.as_fd()), directory.stat(name)) {
        (Ok(open), Ok(named)) => (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino),
        _ => false,
    }
}

fn load(directory: &StateDir, id: &SandboxId) -> Result<Option<State>> {
    let name = record_name(id);
    let path = directory.path().join(&name);
    let text = match directory.read(&name) {
        Ok(file) => read_document(file).map_err(|error| {
            Error::new(ErrorKind::State, error.message().to_owned()).with_path(&path).with_source(error)
        })?,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(directory.failed("cannot read the state", &name, errno)),
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
