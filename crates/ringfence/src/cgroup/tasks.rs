//! The processes and threads of a cgroup, with their names.

use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::kernel::proc;
use crate::sandbox::Part;

/// One process, or one thread of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Process ID.
    pub pid: u32,
    /// Thread ID; that of the process for its first thread.
    pub tid: u32,
    /// The kernel's name of it (`comm`).
    pub name: String,
    /// The part of the sandbox in which it is, where that has parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The number of the vCPU that it runs, if it was found to run one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// The CPU to which it is pinned, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<u32>,
    /// The path of its cgroup, from the root of the hierarchy.
    pub cgroup: String,
}

impl Cgroup {
    /// The processes inside, or all their threads. What ends meanwhile is left out.
    pub fn tasks(&self, threads: bool) -> Result<Vec<Task>> {
        let mut tasks = Vec::new();
        for pid in self.processes()? {
            let own = own_cgroup(pid);
            let whole = format!("/{}", self.path);
            // A process may be in a cgroup below. In another cgroup namespace its path says nothing here.
            let is_below = own.strip_prefix(&whole).is_some_and(|below| below.starts_with('/'));
            let cgroup = if self.exists() && !is_below { whole } else { own };
            for tid in if threads { proc::threads(pid) } else { vec![pid] } {
                if let Some(name) = proc::name(tid) {
                    let (part, index, pinned) = (None, None, None);
                    tasks.push(Task { pid, tid, name, part, index, pinned, cgroup: cgroup.clone() });
                }
            }
        }
        tasks.sort_by_key(|task| (task.pid, task.tid));
        Ok(tasks)
    }
}

/// The cgroup in which a process is by itself: in v2, else in the first hierarchy that it names.
fn own_cgroup(pid: u32) -> String {
    let all = proc::cgroups(pid).unwrap_or_default();
    let found = all.iter().find(|(names, _)| names.is_empty()).or(all.first());
    found.map(|(_, path)| path.clone()).unwrap_or_default()
}
