//! Memory and swap.

use rustix::io::Errno;

use super::draft::{lowered, minus_one};
use super::{Draft, Reaction, Want, convert};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Version};
use crate::resources::{Limit, Memory, page_floor};

pub(super) fn plan(draft: &mut Draft<'_>) -> Result<()> {
    let memory = &draft.want.change.memory;
    if let Some(limit) = memory.kernel.filter(|limit| *limit != Limit::Max) {
        draft.report.add("memory.kernel", limit, "limits on kernel memory are obsolete: it counts as memory");
    }
    if memory.use_hierarchy == Some(false) {
        draft.report.add("memory.useHierarchy", false, "accounting is always hierarchical");
    }
    if let Some(Limit::Value(bytes)) = memory.limit
        && (1..draft.host.page_size).contains(&bytes)
    {
        // The kernel rounds down to whole pages.
        let why = format!("takes at least one page, {} bytes", draft.host.page_size);
        return Err(Error::invalid("memory.limit", bytes, why));
    }
    match draft.place_of(Controller::Memory) {
        Some((index, Version::V1)) => v1(draft, index),
        Some((index, Version::V2)) => v2(draft, index),
        None => {
            let Memory { limit, reservation, swap, kernel_tcp, swappiness, disable_oom_killer, .. } = *memory;
            let disable_oom_killer = disable_oom_killer.filter(|disable| *disable);
            let asked = Memory {
                limit,
                reservation,
                swap,
                kernel_tcp,
                swappiness,
                disable_oom_killer,
                ..Memory::default()
            };
            draft.report_without(Controller::Memory, "memory", &asked);
            Ok(())
        }
    }
}

const LIMIT: &str = "memory.limit_in_bytes";
const MEMSW: &str = "memory.memsw.limit_in_bytes";

fn v1(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    v1_limit_and_swap(draft, index)?;
    let memory = &draft.want.change.memory;
    if let Some(limit) = memory.reservation {
        draft.write(index, "memory.reservation", "memory.soft_limit_in_bytes", minus_one(limit));
    }
    if let Some(disable) = memory.disable_oom_killer {
        draft.write(index, "memory.disableOOMKiller", "memory.oom_control", u8::from(disable));
    }
    if let Some(swappiness) = memory.swappiness {
        draft.write(index, "memory.swappiness", "memory.swappiness", swappiness);
    }
    if let Some(limit) = memory.kernel_tcp {
        draft.write(index, "memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", minus_one(limit));
    }
    Ok(())
}

/// The kernel keeps limit ≤ memsw at every moment: growing raises memsw first, shrinking lowers the limit first.
fn v1_limit_and_swap(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let memory = &draft.want.change.memory;
    if memory.limit.is_none() && memory.swap.is_none() {
        return Ok(());
    }
    let swap_now = v1_now(draft, index, MEMSW);
    let (limit, swap) = v1_wanted(draft, index, swap_now)?;
    if memory.limit.is_some()
        && memory.check_before_update == Some(true)
        && let (Some(usage), Limit::Value(limit)) = (draft.now_number(index, "memory.usage_in_bytes"), limit)
        && limit < usage
    {
        return Err(Error::new(ErrorKind::Busy, format!("below the {usage} bytes in use"))
            .with_setting("memory.limit")
            .with_value(limit));
    }
    let steps = [(LIMIT, "memory.limit", memory.limit), (MEMSW, "memory.swap", swap)];
    let growing = swap.is_some_and(|swap| swap >= swap_now);
    let ordered = if growing { [steps[1], steps[0]] } else { steps };
    for (file, setting, value) in ordered {
        if let Some(value) = value {
            draft.write(index, setting, file, minus_one(value)).on(Errno::BUSY, Reaction::MemoryInUse).on(
                Errno::INVAL,
                Reaction::Explain("memory plus swap cannot be less than the limit of memory"),
            );
        }
    }
    Ok(())
}

/// The limit that will be in force, and the memory+swap limit to be written, if any.
fn v1_wanted(draft: &mut Draft<'_>, index: usize, swap_now: Limit) -> Result<(Limit, Option<Limit>)> {
    let (base, memory) = (&draft.want.base.memory, &draft.want.change.memory);
    let limit = memory.limit.or(base.limit).unwrap_or_else(|| v1_now(draft, index, LIMIT));
    let swap = match memory.swap {
        Some(swap) => {
            convert::swap_to_v2(limit, swap)?;
            Some(swap)
        }
        None if limit == Limit::Max || limit > swap_now => Some(limit),
        None => None,
    };
    if draft.host.capabilities.swap {
        return Ok((limit, swap));
    }
    if let Some(swap @ Limit::Value(_)) = memory.swap {
        draft.report.add("memory.swap", swap, "swap accounting is off in this kernel (swapaccount=1)");
    }
    Ok((limit, None))
}

fn v1_now(draft: &Draft<'_>, index: usize, file: &str) -> Limit {
    draft.number_to_write(index, file).map_or(Limit::Max, Limit::from_bytes)
}

fn v2(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    v2_limit_and_swap(draft, index)?;
    let memory = &draft.want.change.memory;
    if let Some(limit) = memory.reservation {
        draft.write(index, "memory.reservation", "memory.low", limit);
    }
    let report = &mut draft.report;
    if let Some(limit) = memory.kernel_tcp.filter(|limit| *limit != Limit::Max) {
        let why = "cgroup v2 counts TCP buffers as memory and has no limit of their own";
        report.add("memory.kernelTCP", limit, why);
    }
    if let Some(swappiness) = memory.swappiness {
        report.add("memory.swappiness", swappiness, "cgroup v2 has no per-cgroup swappiness");
    }
    if memory.disable_oom_killer == Some(true) {
        report.add("memory.disableOOMKiller", true, "cgroup v2 cannot switch the OOM killer off");
    }
    Ok(())
}

/// OCI's swap is memory plus swap; v2 limits swap alone.
fn v2_limit_and_swap(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let (base, change) = (&draft.want.base.memory, &draft.want.change.memory);
    let swap = match (change.limit, change.swap) {
        (None, None) => return Ok(()),
        (limit, Some(swap)) => {
            let now = || draft.number_to_write(index, "memory.max").map_or(Limit::Max, Limit::Value);
            Some(convert::swap_to_v2(limit.or(base.limit).unwrap_or_else(now), swap)?)
        }
        // Without a limit of memory, one of swap alone would be left behind.
        (Some(Limit::Max), None) => Some(Limit::Max),
        (Some(Limit::Value(_)), None) => None,
    };
    if let Some(limit) = change.limit {
        let setting = draft.setting("memory.max", "memory.limit");
        refuse_below_usage(draft, index, &setting, limit)?;
        let verify = lowered(draft.want, limit, "a size in bytes");
        draft.write(index, setting, "memory.max", paged(draft, limit)).verify(verify);
    }
    match swap {
        Some(swap) if draft.host.capabilities.swap => {
            let now = draft.number_to_write(index, "memory.swap.max").map_or(Limit::Max, Limit::Value);
            if !draft.want.create
                && swap < now
                && let Some(used) = draft.number(index, "memory.swap.current")
                && swap < Limit::Value(used)
            {
                let why =
                    "in force from now on; what is in swap already stays there (v2 does not reclaim swap)";
                draft.report.note("memory.swap", change.swap.unwrap_or(swap), why);
            }
            let value = paged(draft, swap);
            draft.write(index, "memory.swap", "memory.swap.max", value);
        }
        Some(swap @ Limit::Value(_)) => {
            let why = "swap accounting is off in this kernel";
            draft.report.add("memory.swap", change.swap.unwrap_or(swap), why);
        }
        _ => {}
    }
    Ok(())
}

/// The kernel rounds down to pages, and reads the greatest number of pages that it can count as `max`; so do we, to read
/// back what was written.
fn paged(draft: &Draft<'_>, limit: Limit) -> Limit {
    let pages = |bytes| page_floor(bytes, draft.host.page_size);
    match limit {
        Limit::Value(bytes) if pages(bytes) < pages(i64::MAX.cast_unsigned()) => Limit::Value(pages(bytes)),
        _ => Limit::Max,
    }
}

/// v2 takes a limit below what is in use, and kills at once.
fn refuse_below_usage(draft: &Draft<'_>, index: usize, setting: &str, limit: Limit) -> Result<()> {
    match (draft.now_number(index, "memory.current"), limit) {
        (Some(usage), Limit::Value(limit)) if limit < usage && !draft.want.force => {
            let why = format!(
                "below the {usage} bytes in use: the kernel would kill at once (force it to have that)"
            );
            Err(Error::new(ErrorKind::Busy, why).with_setting(setting.to_owned()).with_value(limit))
        }
        _ => Ok(()),
    }
}

/// Has the kernel kill everything in a new sandbox when it runs out of memory, unless the caller says something about it: of a
/// virtual machine, whose helper alone was killed, only half is left. Where the memory controller is not enabled there is no
/// such file (Linux 4.19).
pub(super) fn kill_as_group(draft: &mut Draft<'_>) {
    const FILE: &str = "memory.oom.group";
    let Want { create, oom_group_by_default, change, .. } = draft.want;
    if !(*create && *oom_group_by_default) || change.unified.contains_key(FILE) {
        return;
    }
    if let Some((index, Version::V2)) = draft.place_of(Controller::Memory) {
        draft.write(index, "unified.memory.oom.group", FILE, "1".to_owned()).on(Errno::NOENT, Reaction::Skip);
    }
}
