//! The last words of a sandbox: whoever removes its cgroup reads the counters when everything inside is dead, before they
//! are gone, and passes them on, in this process and to those that watch its store.

use std::any::Any;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind as IoKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{FallocateFlags, FlockOperation};
use serde::{Deserialize, Serialize};

use super::LastCounts;
use crate::path::SandboxId;
use crate::sandbox::Store;

/// In the state directory: a file for each process that watches.
const WATCHERS: &str = "watchers";
const SPOOL: &str = "spool";
/// What has been read of a spool is given back in pieces of this size.
const PIECE: u64 = 1 << 20;

/// What is told of a sandbox that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastWord {
    /// The counters of a cgroup of it, before that is removed.
    Counted(LastCounts),
    /// It is removed.
    Removed,
}

/// Who is told. Called by whoever removes the sandbox.
pub(crate) type Hearer = Arc<dyn Fn(LastWord) + Send + Sync>;

/// What a listener lives as long as.
pub(crate) type Lifetime = Weak<dyn Any + Send + Sync>;

/// Those that are told of one sandbox.
#[derive(Default)]
pub(crate) struct Hearers(Mutex<Vec<(Lifetime, Hearer)>>);

impl Hearers {
    /// Adds a listener, until what it belongs to is dropped. Those whose owners are gone are forgotten.
    pub(crate) fn add(&self, lifetime: Lifetime, hearer: Hearer) {
        let mut hearers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hearers.retain(|(lifetime, _)| lifetime.strong_count() > 0);
        hearers.push((lifetime, hearer));
    }

    pub(crate) fn tell(&self, word: LastWord) {
        let hearers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        hearers
            .iter()
            .filter(|(lifetime, _)| lifetime.strong_count() > 0)
            .for_each(|(_, hearer)| hearer(word));
    }
}

impl fmt::Debug for Hearers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hearers")
    }
}

/// A line of a spool.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) id: SandboxId,
    /// None: the sandbox is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<LastCounts>,
}

/// Tells every process that watches this state directory. One that cannot be told sees for itself what is left to see.
pub(crate) fn announce(state_directory: &Path, id: &SandboxId, word: LastWord) {
    let directory = state_directory.join(WATCHERS);
    // Nobody watches.
    let Ok(entries) = fs::read_dir(&directory) else { return };
    let last = match word {
        LastWord::Counted(last) => Some(last),
        LastWord::Removed => None,
    };
    let Ok(mut line) = serde_json::to_vec(&Line { id: id.clone(), last }) else { return };
    line.push(b'\n');
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_none_or(|extension| extension != SPOOL) {
            continue;
        }
        let Ok(mut spool) = File::options().append(true).custom_flags(libc::O_NOFOLLOW).open(&path) else {
            continue;
        };
        match rustix::fs::flock(&spool, FlockOperation::NonBlockingLockExclusive) {
            // Whoever watched was killed.
            Ok(()) => {
                _ = fs::remove_file(&path);
                _ = fs::remove_dir(&directory);
            }
            // One write(2): lines of several processes do not mix.
            Err(_) => _ = spool.write_all(&line),
        }
    }
}

/// What is told to this process of the sandboxes of a state directory. It keeps the directory from being removed.
///
/// A file, so that whoever tells never waits, and nothing is lost however long nobody reads.
#[derive(Debug)]
pub(super) struct Spool {
    state_directory: PathBuf,
    path: PathBuf,
    pub(super) file: File,
    /// Up to here it was read.
    read: u64,
    /// Up to here its memory was given back.
    freed: u64,
}

impl Spool {
    pub(super) fn new(state_directory: &Path) -> std::io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = state_directory.join(WATCHERS);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (new, path) = (directory.join(&name), directory.join(format!("{name}.{SPOOL}")));
        let mut tries = 0;
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            let made =
                File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new);
            // Under its lock before it can be seen.
            let renamed = made.and_then(|file| {
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                fs::rename(&new, &path).map(|()| file)
            });
            tries += 1;
            match renamed {
                // The last one that watched has just removed the directory.
                Err(error) if error.kind() == IoKind::NotFound && tries < 100 => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    let state_directory = state_directory.to_owned();
                    return Ok(Self { state_directory, path, file, read: 0, freed: 0 });
                }
            }
        }
    }

    /// The lines that are new. `buffer` is for what is read.
    pub(super) fn read_lines(&mut self, buffer: &mut Vec<u8>, mut take: impl FnMut(Line)) {
        loop {
            buffer.resize(buffer.capacity().max(16 << 10), 0);
            let Ok(length @ 1..) = self.file.read_at(buffer, self.read) else { return };
            let read = buffer.get(..length).unwrap_or_default();
            // A line that is only half there is read again.
            let Some(end) = read.iter().rposition(|byte| *byte == b'\n') else { return };
            let (whole, _) = read.split_at_checked(end + 1).unwrap_or_default();
            self.read += whole.len() as u64;
            let lines = whole.split(|byte| *byte == b'\n');
            lines.filter_map(|line| serde_json::from_slice(line).ok()).for_each(&mut take);
            if self.read - self.freed > PIECE {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                // A file system that cannot keeps it until the end.
                _ = rustix::fs::fallocate(&self.file, hole, self.freed, self.read - self.freed);
                self.freed = self.read;
            }
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
        // The last one to go.
        if let Some(directory) = self.path.parent() {
            _ = fs::remove_dir(directory);
        }
        Store::new(&self.state_directory).remove_if_unused();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_whose_owners_are_gone_are_forgotten() {
        let (hearers, told) = (Hearers::default(), Arc::new(AtomicU32::new(0)));
        let add = |owner: &Arc<u8>| {
            let told = Arc::clone(&told);
            let lifetime: Lifetime = Arc::downgrade(owner) as Lifetime;
            hearers.add(lifetime, Arc::new(move |_| _ = told.fetch_add(1, Ordering::Relaxed)));
        };
        for _ in 0..1000 {
            add(&Arc::new(0));
        }
        let owner = Arc::new(0);
        add(&owner);
        assert_eq!(hearers.0.lock().unwrap().len(), 1);
        hearers.tell(LastWord::Removed);
        drop(owner);
        hearers.tell(LastWord::Removed);
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
    use crate::events::Counts;

    #[test]
    fn every_watcher_hears_every_word_in_order_and_none_leaves_a_trace() {
        let scratch = tempfile::tempdir().unwrap();
        let store = scratch.path().join("state");
        let id: SandboxId = "vm1".parse().unwrap();
        announce(&store, &id, LastWord::Removed);
        assert!(!store.exists(), "nobody watches");
        let mut watchers = [(); 2].map(|()| Spool::new(&store).unwrap());
        let word = |n| {
            let counts = Counts { oom_kill: Some(n), ..Counts::default() };
            LastWord::Counted(LastCounts { instance: u64::MAX, counts })
        };
        // Longer than one reading.
        (0..1000).for_each(|n| announce(&store, &id, word(n)));
        announce(&store, &id, LastWord::Removed);
        for watcher in &mut watchers {
            let mut heard = Vec::new();
            let mut buffer = Vec::new();
            watcher.read_lines(&mut buffer, |line| heard.push(line.last.map(|last| last.counts.oom_kill)));
            let expected: Vec<_> = (0..1000).map(|n| Some(Some(n))).chain([None]).collect();
            assert_eq!(heard, expected);
            watcher.read_lines(&mut buffer, |line| panic!("{line:?} again"));
        }
        drop(watchers);
        assert!(!store.exists());
    }

    #[test]
    fn what_a_killed_watcher_left_is_removed_with_the_next_word() {
        let store = tempfile::tempdir().unwrap();
        let left = store.path().join(WATCHERS).join("1-0.spool");
        fs::create_dir(store.path().join(WATCHERS)).unwrap();
        fs::write(&left, "").unwrap();
        announce(store.path(), &"vm1".parse().unwrap(), LastWord::Removed);
        assert!(!left.exists());
    }
}
