//! The directories, and on v2 the controllers that are enabled above them.

use super::{Action, Dir, Draft, Step, Undo};
use crate::host::{Controller, Hierarchy, Version};
use crate::interface::controller_of;

/// What comes before the values of a new cgroup: its directory in every hierarchy, so that a process that joins is
/// counted, frozen and found in each. On v2 controllers are enabled on the way down, while the levels are empty.
pub(super) fn make(draft: &Draft<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, hierarchy) in draft.host.hierarchies.iter().enumerate() {
        let (required, wanted) = match hierarchy.version {
            Version::V1 => Default::default(),
            Version::V2 => controllers(draft, &draft.steps, index, hierarchy),
        };
        for dir in levels(&draft.leaf(index)) {
            if let Some(above) = dir.parent()
                && !(required.is_empty() && wanted.is_empty())
            {
                let evacuate = draft.want.evacuate && above.path.is_empty();
                let (required, wanted) = (required.clone(), wanted.clone());
                steps.push(Step::new(Action::EnableControllers { dir: above, required, wanted, evacuate }));
            }
            let ancestor = dir != draft.leaf(index);
            let mut step = Step::new(Action::MakeDir { dir, ancestor });
            step.undo = Undo::RemoveDir;
            steps.push(step);
        }
    }
    steps
}

/// What comes before the values of a change: on v2 it may need a controller that nothing has needed before, which is
/// enabled from the root down. Processes that run inside do not hinder that.
pub(super) fn enable_missing(draft: &Draft<'_>) -> Vec<Step> {
    enable_for(draft, &draft.steps)
}

/// The same for these writes.
pub(super) fn enable_for(draft: &Draft<'_>, writes: &[Step]) -> Vec<Step> {
    let Some((index, hierarchy)) = draft.host.unified() else { return Vec::new() };
    let (mut required, _) = controllers(draft, writes, index, hierarchy);
    if !required.is_empty() {
        let there = Controller::list_from_v2(draft.now(index, "cgroup.controllers").unwrap_or_default());
        required.retain(|controller| !there.contains(controller));
    }
    if required.is_empty() {
        return Vec::new();
    }
    let enable = |dir: Dir| {
        let (required, wanted, evacuate) = (required.clone(), Vec::new(), false);
        Step::new(Action::EnableControllers { dir, required, wanted, evacuate })
    };
    levels(&draft.leaf(index)).iter().filter_map(Dir::parent).map(enable).collect()
}

/// The v2 controllers without which a value that is written has no file, and those that are only wanted.
fn controllers(
    draft: &Draft<'_>,
    writes: &[Step],
    index: usize,
    hierarchy: &Hierarchy,
) -> (Vec<Controller>, Vec<Controller>) {
    let mut required = Vec::new();
    for step in writes {
        if let Action::Write { dir, file, .. } = &step.action
            && dir.hierarchy == index
            && let Some(controller) = controller_of(file)
            && !required.contains(&controller)
        {
            required.push(controller);
        }
    }
    let offered = |controller: &Controller| hierarchy.controllers.contains(controller);
    let wanted = draft.want.statistics.iter().copied().filter(offered);
    let wanted = wanted.filter(|controller| !required.contains(controller)).collect();
    (required, wanted)
}

/// The directory and those above it but the root, top-down.
fn levels(leaf: &Dir) -> Vec<Dir> {
    let above = std::iter::successors(Some(leaf.clone()), Dir::parent);
    let mut levels: Vec<_> = above.take_while(|dir| !dir.path.is_empty()).collect();
    levels.reverse();
    levels
}
