//! Directories that are ours and of which nobody knows any more: found by the mark that they carry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Store;
use crate::cgroup::mark::{mark_of, marked_hierarchy};
use crate::cgroup::{Cgroup, Outcome, Remaining, descend, members, stop_default_slice};
use crate::error::{Error, Result};
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
}

impl Store {
    /// The text that marks cgroups of sandboxes that are kept here.
    pub fn mark(&self) -> String {
        let directory = std::path::absolute(self.directory()).unwrap_or_else(|_| self.directory().to_owned());
        format!("store:{}", directory.display())
    }

    /// Cgroups that carry this store's mark and of which it has no state; leaves of drained processes that are empty;
    /// and what a process left that died while it probed the host.
    pub fn leftovers(&self, host: &Host) -> Result<Vec<Leftover>> {
        let hierarchy = marked_hierarchy(host);
        // Without privileges, what is ours is below what is delegated to us.
        let Some(default_parent) = host.default_parent() else { return Ok(Vec::new()) };
        let base = host.base_of(&default_parent);
        let root = host.open(hierarchy, base).map_err(|errno| {
            Error::kernel("cannot open the root", Dir::new(hierarchy, base).full(host), errno)
        })?;
        let mut found = Vec::new();
        let version = host.version_of(hierarchy);
        self.search(&root, version, base, &mut found);
        found.extend(empty_default_parent(host, &default_parent));
        found.extend(empty_default_slice(host));
        // After the search: a state is written before its cgroup is made, so that what was made meanwhile is known now.
        let mut known = BTreeSet::new();
        for id in self.ids()? {
            let state = self.load(&id)?;
            known.extend(
                state
                    .iter()
                    .flat_map(|state| [Some(state), state.apart.as_deref()])
                    .flatten()
                    .map(|state| state.cgroup.clone()),
            );
        }
        found.retain(|leftover| !known.contains(&leftover.path));
        Ok(found)
    }

    fn search(&self, root: &CgroupDir, version: Version, base: &str, found: &mut Vec<Leftover>) {
        _ = descend(root, |cgroup, names| {
            // Ours have names that a path can hold, and are below such.
            let Some(name) = names.last().and_then(|name| name.to_str()) else { return false };
            let (why, is_shared) = match mark_of(cgroup) {
                Some(mark) if mark == self.mark() => ("a sandbox without a state", false),
                Some(mark) if mark == DRAINED && is_empty(cgroup, version) => {
                    ("took drained processes, and is empty", true)
                }
                _ if name.strip_prefix(PROBE).is_some_and(is_of_dead_process) => {
                    ("a probe that was cut short", false)
                }
                _ => return true,
            };
            let names = names.iter().filter_map(|name| name.to_str());
            let path = Some(base).filter(|base| !base.is_empty()).into_iter().chain(names);
            found.push(Leftover { path: path.collect::<Vec<_>>().join("/"), why, is_shared });
            false
        });
    }
}

impl Leftover {
    /// Where sandboxes are, of which none is left.
    fn parent(path: String) -> Self {
        Self { path, why: "no sandbox is left in it", is_shared: true }
    }
}

/// The default parent, where on v1 drained processes were, if nothing is left in any hierarchy.
fn empty_default_parent(host: &Host, path: &str) -> Option<Leftover> {
    let parent = Cgroup::open_at(host, path).ok()?;
    let is_unused = |(dir, open): &(Dir, Arc<CgroupDir>)| {
        is_empty(open, parent.version(dir)) && open.children().is_ok_and(|children| children.is_empty())
    };
    parent.dirs.iter().all(is_unused).then(|| Leftover::parent(path.to_owned()))
}

/// The default slice, where the last that ended were drained processes.
fn empty_default_slice(host: &Host) -> Option<Leftover> {
    let path = default_slice(host);
    let slice = Cgroup::open_at(host, &path).ok().filter(|_| host.systemd)?;
    let is_unused = slice.dirs.iter().all(|(_, open)| open.children().is_ok_and(|list| list.is_empty()));
    is_unused.then(|| Leftover::parent(path))
}

fn default_slice(host: &Host) -> String {
    format!("{}/{DEFAULT_SLICE}", host.systemd_root).trim_start_matches('/').to_owned()
}

fn is_empty(dir: &CgroupDir, version: Version) -> bool {
    let mut pids = BTreeSet::new();
    members(dir, version, &mut pids).is_ok() && pids.is_empty()
}

/// `PID-NUMBER`, with a PID that is nobody's.
fn is_of_dead_process(name: &str) -> bool {
    name.split('-').next().and_then(|pid| pid.parse().ok()).is_some_and(|pid| Stat::read(pid).is_none())
}

impl Leftover {
    /// The processes inside: they were put there by us.
    pub fn processes(&self, host: &Host) -> Result<BTreeSet<u32>> {
        Cgroup::open_at(host, &self.path)?.processes()
    }

    /// Removes it in every hierarchy. See [`Cgroup::destroy`]; what is shared goes only as far as it is empty, whatever is
    /// said of what remains.
    pub fn remove(&self, host: &Host, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let mut cgroup = Cgroup::open_at(host, &self.path)?;
        if self.path == default_slice(host) {
            let mut outcome = Outcome::default();
            stop_default_slice(host, &self.path, &mut outcome);
            return Ok(outcome);
        }
        let parent = self.path.rsplit_once('/').map(|(parent, _)| parent);
        cgroup.parent_is_default = parent.is_some() && parent == host.default_parent().as_deref();
        if self.is_shared {
            return Ok(cgroup.remove_where_empty());
        }
        cgroup.ours = true;
        cgroup.unit = if host.systemd { SystemdName::of_cgroup(&self.path) } else { None };
        cgroup.destroy(remaining, timeout)
    }
}
