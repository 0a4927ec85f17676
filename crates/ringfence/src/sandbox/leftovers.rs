//! Directories that are ours and of which nobody knows any more: found by the mark that they carry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Store;
use crate::cgroup::mark::{self, Identity, mark_of};
use crate::cgroup::{Cgroup, Outcome, Remaining, descend, members, stop_default_slice};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Host, Version};
use crate::kernel::dir::CgroupDir;
use crate::kernel::proc::Stat;
use crate::path::{DEFAULT_SLICE, DRAINED, SystemdName};
use crate::plan::Dir;

/// An empty cgroup that a process makes to look at, and removes at once.
const PROBE: &str = "ringfence-probe-";

/// A cgroup that is ours and that no state speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leftover {
    /// The path below the root of each hierarchy.
    pub path: String,
    /// What it was.
    pub why: &'static str,
    /// It serves many sandboxes, and was empty when it was found: what somebody put into it since is not touched.
    #[serde(skip)]
    pub is_shared: bool,
    /// The mark on it.
    #[serde(skip)]
    mark: Option<String>,
}

impl Store {
    /// Cgroups that carry this store's mark and of which it has no state; leaves of drained processes and ancestors that
    /// are empty; and what a process left that died while it probed the host. What carries the mark of another store, or
    /// none, is somebody else's.
    pub fn leftovers(&self, host: &Host) -> Result<Vec<Leftover>> {
        // Without privileges, what is ours is below what is delegated to us.
        let Some(default_parent) = host.default_parent() else { return Ok(Vec::new()) };
        let (base, store) = (host.base_of(&default_parent), self.identity()?);
        let mut found = BTreeMap::new();
        for hierarchy in (0..host.hierarchies.len()).filter(|index| host.takes(*index, &default_parent)) {
            let root = host.open(hierarchy, base).map_err(|errno| {
                Error::kernel("cannot open the root", Dir::new(hierarchy, base).full(host), errno)
            })?;
            search(&root, host.version_of(hierarchy), base, store, &mut found);
        }
        // After the search: a state is written before its cgroup is made, so that what was made meanwhile is known now.
        let mut known = BTreeSet::new();
        for id in self.ids()? {
            let state = self.load(&id)?;
            known.extend(state.and_then(|state| state.mark));
        }
        let found = found.into_values();
        Ok(found.filter(|leftover| leftover.mark.as_ref().is_none_or(|mark| !known.contains(mark))).collect())
    }
}

fn search(
    root: &CgroupDir,
    version: Version,
    base: &str,
    store: Option<Identity>,
    found: &mut BTreeMap<String, Leftover>,
) {
    _ = descend(root, |cgroup, names| {
        // Ours have names that a path can hold, and are below such.
        let Some(name) = names.last().and_then(|name| name.to_str()) else { return false };
        let mark = mark_of(cgroup);
        let is_own = |mark: &str| store.is_some() && mark::store_of(mark) == store;
        let (why, is_shared, goes_on) = match mark.as_deref() {
            Some(mark) if is_own(mark) => ("a sandbox without a state", false, false),
            // It belongs to a sandbox of another store, with all that is inside.
            Some(mark) if mark::is_of_sandbox(mark) => return false,
            Some(DRAINED) if is_empty(cgroup, version) => {
                ("took drained processes, and is empty", true, false)
            }
            Some(mark::ANCESTOR) if is_unused(cgroup, version) => ("no sandbox is left in it", true, true),
            _ if name.strip_prefix(PROBE).is_some_and(is_of_dead_process) => {
                ("a probe that was cut short", false, false)
            }
            _ => return true,
        };
        let names = names.iter().filter_map(|name| name.to_str());
        let path = Some(base).filter(|base| !base.is_empty()).into_iter().chain(names);
        let path = path.collect::<Vec<_>>().join("/");
        let mark = mark.filter(|_| !is_shared);
        found.entry(path.clone()).or_insert(Leftover { path, why, is_shared, mark });
        goes_on
    });
}

/// Whether nothing is in an ancestor but a leaf of drained processes that have ended.
fn is_unused(dir: &CgroupDir, version: Version) -> bool {
    is_empty(dir, version)
        && dir.children().is_ok_and(|children| children.iter().all(|child| child == DRAINED))
}

fn is_empty(dir: &CgroupDir, version: Version) -> bool {
    let mut pids = BTreeSet::new();
    members(dir, version, &mut pids).is_ok() && pids.is_empty()
}

/// `PID-NUMBER`, with a PID that is nobody's.
fn is_of_dead_process(name: &str) -> bool {
    name.split('-').next().and_then(|pid| pid.parse().ok()).is_some_and(|pid| Stat::read(pid).is_none())
}

fn default_slice(host: &Host) -> String {
    format!("{}/{DEFAULT_SLICE}", host.systemd_root).trim_start_matches('/').to_owned()
}

impl Leftover {
    /// The cgroup, as far as it carries the mark with which it was found.
    fn open(&self, host: &Host) -> Result<Cgroup> {
        let mut cgroup = Cgroup::open_at(host, &self.path)?;
        cgroup.unit = if host.systemd { SystemdName::of_cgroup(&self.path) } else { None };
        cgroup.mark = self.mark.as_deref().map(Arc::from);
        cgroup.keep_own();
        if !cgroup.exists() {
            return Err(Error::new(ErrorKind::NotFound, "this cgroup is gone").with_value(&self.path));
        }
        Ok(cgroup)
    }

    /// The processes inside: they were put there by us.
    pub fn processes(&self, host: &Host) -> Result<BTreeSet<u32>> {
        self.open(host)?.processes()
    }

    /// Removes it in every hierarchy. See [`Cgroup::destroy`]; what is shared goes only as far as it is empty, whatever is
    /// said of what remains.
    pub fn remove(&self, host: &Host, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        if self.path == default_slice(host) {
            let mut outcome = Outcome::default();
            stop_default_slice(host, &self.path, &mut outcome);
            return Ok(outcome);
        }
        let mut cgroup = self.open(host)?;
        if self.is_shared {
            return Ok(cgroup.remove_where_empty());
        }
        cgroup.ours = true;
        cgroup.destroy(remaining, timeout)
    }
}
