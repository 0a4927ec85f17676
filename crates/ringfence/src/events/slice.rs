//! The counters of a slice, in which those of its scopes are (v2). systemd removes a scope behind its last process, and
//! with it what the kernel counted last; the slice still has it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::counts::Counts;
use super::place::Kit;
use super::watches::Whom;
use crate::host::Host;
use crate::kernel::dir::read_all;

/// A slice in which scopes are watched.
#[derive(Debug)]
pub(super) struct Slice {
    key: u32,
    host: Arc<Host>,
    hierarchy: usize,
    pub(super) path: String,
    /// `memory.events`.
    open: Option<(OwnedFd, i32)>,
    seen: u64,
    /// Kills that were counted here and not in any scope that is known; below 0, the other way round.
    unexplained: i64,
}

impl Slice {
    pub(super) fn new(key: u32, host: &Arc<Host>, hierarchy: usize, path: &str, kit: &mut Kit) -> Self {
        let host = Arc::clone(host);
        let mut slice =
            Self { key, host, hierarchy, path: path.to_owned(), open: None, seen: 0, unexplained: 0 };
        // What was counted before is nobody's; of a slice that is yet to come, everything is somebody's.
        slice.seen = slice.count(kit).unwrap_or(0);
        slice
    }

    /// The kills that it has counted; `None` while there is no slice.
    pub(super) fn count(&mut self, kit: &mut Kit) -> Option<u64> {
        for _ in 0..2 {
            if self.open.is_none() {
                let dir = self.host.root(self.hierarchy).and_then(|root| root.open_dir(&self.path)).ok()?;
                let file = dir.open("memory.events", OFlags::RDONLY).ok()?;
                let watched = kit.watches.file(&file, Whom::Slice(self.key)).ok()?;
                self.open = Some((file, watched));
                self.seen = 0;
            }
            if let Some((file, watched)) = &self.open {
                if read_all(file, &mut kit.buffer).is_ok() {
                    let mut counts = Counts::default();
                    counts.take_memory_events(&kit.buffer);
                    return counts.oom_kill;
                }
                // It went, and may have come again.
                kit.watches.forget(*watched, Whom::Slice(self.key));
                self.open = None;
            }
        }
        None
    }

    /// A scope has counted these itself.
    pub(super) fn explain(&mut self, kills: u64) {
        self.unexplained = self.unexplained.saturating_sub_unsigned(kills);
    }

    /// How many kills cannot have been in a scope that is there, when the slice has counted `total`. Those that are not
    /// found in one that has ended were in scopes that nobody watches.
    pub(super) fn settle(&mut self, total: u64) -> u64 {
        self.unexplained = self.unexplained.saturating_add_unsigned(total.saturating_sub(self.seen));
        self.seen = self.seen.max(total);
        let left = u64::try_from(self.unexplained).unwrap_or(0);
        self.unexplained = self.unexplained.min(0);
        left
    }
}
