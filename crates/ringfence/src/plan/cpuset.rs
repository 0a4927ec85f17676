//! CPUs and memory nodes.

use rustix::io::Errno;

use super::{Action, Dir, Draft, Reaction, Step, Verify};
use crate::host::{Controller, Hierarchy, Version};
use crate::resources::{Cpu, CpuSet};

/// The setting, its file, and on v2 the file with the set that is in force.
const SETTINGS: [(&str, &str, &str); 2] = [
    ("cpu.cpus", "cpuset.cpus", "cpuset.cpus.effective"),
    ("cpu.mems", "cpuset.mems", "cpuset.mems.effective"),
];

pub(super) fn plan(draft: &mut Draft<'_>) {
    let Cpu { cpus, mems, .. } = &draft.want.change.cpu;
    match draft.hierarchy_of(Controller::Cpuset) {
        Some((index, hierarchy)) if hierarchy.version == Version::V1 => v1(draft, index, hierarchy),
        Some((index, _)) => {
            for ((setting, file, effective), set) in SETTINGS.into_iter().zip([cpus, mems]) {
                if let Some(set) = set {
                    let step = draft.write(index, setting, file, set);
                    explain(step).verify(Verify::Within { file: effective, asked: set.clone() });
                }
            }
        }
        None => {
            let sets = Cpu { cpus: cpus.clone(), mems: mems.clone(), ..Cpu::default() };
            draft.report_without(Controller::Cpuset, "cpu", &sets);
        }
    }
}

/// A new cpuset is empty, and nothing can join it: every level that is empty is filled from the one above, top-down.
fn v1(draft: &mut Draft<'_>, index: usize, hierarchy: &Hierarchy) {
    let files = if hierarchy.noprefix { ["cpus", "mems"] } else { ["cpuset.cpus", "cpuset.mems"] };
    let Cpu { cpus, mems, .. } = &draft.want.change.cpu;
    let machine = [&draft.host.cpus, &draft.host.mems];
    for (((file, (setting, ..)), set), machine) in
        files.into_iter().zip(SETTINGS).zip([cpus, mems]).zip(machine)
    {
        if draft.want.create {
            fill(draft, index, file, set.is_some(), machine);
        }
        if let Some(set) = set {
            explain(draft.write(index, setting, file, set));
        }
    }
}

/// Fills the empty levels of one cpuset file, the cgroup's own too unless its set `is_wanted`, with what the nearest level
/// has that is not empty; `machine` is what the root has if it is not read.
fn fill(draft: &mut Draft<'_>, index: usize, file: &'static str, is_wanted: bool, machine: &CpuSet) {
    let own = draft.leaf(index);
    let (mut inherited, mut empty) = (None, Vec::new());
    for dir in std::iter::successors(own.parent(), Dir::parent) {
        inherited = draft.above(index, &dir.path, file).filter(|now| !now.is_empty());
        if inherited.is_some() {
            break;
        }
        if !dir.path.is_empty() {
            empty.push(dir);
        }
    }
    let inherited = inherited.map_or_else(|| machine.to_string(), |now| now.to_string());
    // Top-down: empty, or not there yet. If somebody else makes it first, they fill it with the same.
    for dir in empty.into_iter().rev().chain((!is_wanted).then_some(own)) {
        draft.push(Step::new(Action::Write { dir, file: file.into(), value: inherited.clone() }));
    }
}

/// The errnos of a set that the parent does not have, or that lacks what the tasks need.
pub(super) fn explain(step: &mut Step) -> &mut Step {
    step.on(Errno::INVAL, Reaction::Explain("not online, or not a list such as 0-3,8"))
        .on(Errno::RANGE, Reaction::Explain("not on this machine"))
        .on(Errno::ACCESS, Reaction::Explain("the parent cgroup does not have all of it"))
        .on(Errno::NOSPC, Reaction::Explain("a set that is in use cannot become empty"))
        .on(Errno::BUSY, Reaction::Explain("a child cgroup uses what would be taken away"))
}

/// The file with the set that is in force (v2), for a file that takes one.
pub(super) fn effective(file: &str) -> Option<&'static str> {
    SETTINGS.into_iter().find(|(_, known, _)| *known == file).map(|(.., effective)| effective)
}
