//! What may be opened: `devices.allow` and `devices.deny` on v1, an eBPF program on v2.

use std::borrow::Cow;

use rustix::io::Errno;

use super::{Action, DeviceWant, Draft, Reaction, Step, Undo, Verify};
use crate::devices::DevicePolicy;
use crate::devices::transition::{self, LiveDevices, LiveList};
use crate::error::Result;
use crate::host::{Controller, Version};

/// v1's list of what is allowed.
pub(crate) const DEVICES_LIST: &str = "devices.list";

pub(super) fn plan(draft: &mut Draft<'_>) -> Result<()> {
    let Some(wanted) = draft.want.devices else { return Ok(()) };
    let value = format!("{} exceptions", wanted.policy.exceptions().count());
    if let Some((index, _)) = draft.host.hierarchy_of(Controller::Devices) {
        if !draft.takes(index) {
            draft.report.add("devices", value, draft.why_without(Controller::Devices));
        } else if draft.host.rootless {
            draft.report.add("devices", value, "a list of devices (cgroup v1) takes CAP_SYS_ADMIN to change");
        } else {
            v1(draft, index, &wanted)?;
        }
        return Ok(());
    }
    match draft.unified() {
        Some((index, _)) if draft.host.capabilities.bpf_devices => {
            let (dir, policy) = (draft.leaf(index), wanted.policy.clone());
            let filter = Action::DeviceFilter { dir, policy, overriding: wanted.overriding };
            let step = draft.push(Step::new(filter));
            step.setting = Some("devices".into());
            step.undo = Undo::DeviceFilter;
        }
        Some(_) => {
            let why = "a device filter needs bpf(2), which takes CAP_SYS_ADMIN (or CAP_BPF and CAP_NET_ADMIN), a kernel with BPF \
                       device programs, and no seccomp filter that denies it";
            draft.report.add("devices", value, why);
        }
        None => draft.report.add("devices", value, draft.why_without(Controller::Devices)),
    }
    Ok(())
}

/// A new cgroup has its parent's list, which is reset; a change is the smallest set of writes.
fn v1(draft: &mut Draft<'_>, index: usize, wanted: &DeviceWant<'_>) -> Result<()> {
    let list = match draft.now(index, DEVICES_LIST) {
        Some(list) => transition::parse_devices_list(list.as_bytes())?,
        None => LiveList::AllowByDefault,
    };
    let live = LiveDevices { list, known: wanted.before.cloned() };
    change(draft, index, wanted, &live)
}

/// The same from a policy that will be in force by then.
pub(super) fn v1_from(
    draft: &mut Draft<'_>,
    index: usize,
    wanted: &DeviceWant<'_>,
    before: &DevicePolicy,
) -> Result<()> {
    change(draft, index, wanted, &LiveDevices { list: before.into(), known: Some(before.clone()) })
}

/// Whether what runs inside would notice a moment in which everything is refused, or allowed. systemd changes devices while
/// all is stopped.
fn is_running(draft: &Draft<'_>, index: usize) -> bool {
    let says = |index, file, what: &str| draft.now(index, file).is_some_and(|now| now.contains(what));
    let is_frozen = || match (draft.place_of(Controller::Freezer), draft.unified()) {
        (Some((freezer, Version::V1)), _) => says(freezer, "freezer.state", "FR"),
        (_, Some((unified, _))) => {
            says(unified, "cgroup.events", "frozen 1") || says(unified, "cgroup.freeze", "1")
        }
        _ => false,
    };
    let is_empty = draft.now(index, "cgroup.procs").is_none_or(|listed| listed.is_empty());
    draft.want.unit.is_none() && !is_empty && !is_frozen()
}

/// The writes that replace policy `from` by policy `to` while no process inside runs.
pub(super) fn writes_between(
    from: &DevicePolicy,
    to: &DevicePolicy,
) -> Result<Vec<(Cow<'static, str>, String)>> {
    let live = LiveDevices { list: from.into(), known: Some(from.clone()) };
    let writes = transition::transition(&live, to, || false)?;
    Ok(writes.into_iter().map(|write| (write.file.into(), write.value)).collect())
}

fn change(draft: &mut Draft<'_>, index: usize, wanted: &DeviceWant<'_>, live: &LiveDevices) -> Result<()> {
    let writes = transition::transition(live, wanted.policy, || is_running(draft, index))?;
    let mut undo = match wanted.before {
        Some(before) if !draft.want.create => writes_between(wanted.policy, before)?,
        _ => Vec::new(),
    };
    let last = writes.len().saturating_sub(1);
    for (position, write) in writes.into_iter().enumerate() {
        let reset = write.is_reset();
        let dir = draft.leaf(index);
        let step = draft.push(Step::new(Action::Write { dir, file: write.file.into(), value: write.value }));
        step.setting = Some("devices".into());
        step.on(Errno::PERM, Reaction::DeviceRule);
        // EINVAL of a reset: there are child cgroups; a removed one counts for a moment more.
        step.on(Errno::INVAL, if reset { Reaction::DeviceReset } else { Reaction::DeviceRule });
        if position == 0 {
            step.undo = Undo::Write(std::mem::take(&mut undo));
        }
        if position == last {
            step.verify(Verify::DeviceList(wanted.policy.clone()));
        }
    }
    Ok(())
}
