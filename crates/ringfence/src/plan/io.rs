//! Block devices: weights and throttles.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::{Draft, Reaction, Step, convert};
use crate::host::{Controller, Version};
use crate::interface::Lines;
use crate::resources::{BlockIo, Limit, Throttles};

pub(super) fn plan(draft: &mut Draft<'_>) {
    let change = &draft.want.change.block_io;
    if *change == BlockIo::default() {
        return;
    }
    match draft.place_of(Controller::Io) {
        Some((index, version)) => {
            weights(draft, index, version);
            leaf_weights(draft, index, version);
            match version {
                Version::V1 => v1_throttles(draft, index),
                Version::V2 => v2_throttles(draft, index),
            }
        }
        None => draft.report_without(Controller::Io, "blockIO", change),
    }
}

/// BFQ's weights where the kernel has BFQ, else those of the cost model (v2, other scale) or of CFQ (v1, before Linux 5.0).
fn weights(draft: &mut Draft<'_>, index: usize, version: Version) {
    let BlockIo { weight, weight_device, .. } = &draft.want.change.block_io;
    let capabilities = &draft.host.capabilities;
    let (file, device_file, convert): (_, _, fn(u64) -> u64) = match version {
        Version::V1 if capabilities.bfq_weight => {
            ("blkio.bfq.weight", "blkio.bfq.weight_device", |weight| weight)
        }
        Version::V1 => ("blkio.weight", "blkio.weight_device", |weight| weight),
        Version::V2 if capabilities.bfq_weight => ("io.bfq.weight", "io.bfq.weight", |weight| weight),
        Version::V2 => ("io.weight", "io.weight", convert::io_weight),
    };
    let supported = capabilities.bfq_weight || capabilities.io_weight;
    let devices = weight_device.iter().filter_map(|(device, weights)| Some((device, weights.weight?)));
    let why = "this kernel weighs no block devices: neither BFQ is loaded nor the cost model built in";
    if let Some(weight) = weight {
        if supported {
            draft.write(index, "blockIO.weight", file, convert(*weight));
        } else {
            draft.report.add("blockIO.weight", weight, why);
        }
    }
    for (device, weight) in devices {
        let setting = format!("blockIO.weightDevice.{device}.weight");
        if supported {
            let step = draft.write(index, setting, device_file, format!("{device} {}", convert(weight)));
            let why = "neither BFQ schedules this device, nor is the cost model on for it (io.cost.qos)";
            explain(step).on(Errno::OPNOTSUPP, Reaction::Unsupported(why));
        } else {
            draft.report.add(setting, weight, why);
        }
    }
}

/// CFQ alone, which went with Linux 5.0, weighed a cgroup's own tasks against its children.
fn leaf_weights(draft: &mut Draft<'_>, index: usize, version: Version) {
    let BlockIo { leaf_weight, weight_device, .. } = &draft.want.change.block_io;
    let supported = version == Version::V1 && draft.host.capabilities.io_weight;
    let whole =
        leaf_weight.map(|weight| ("blockIO.leafWeight".to_owned(), "blkio.leaf_weight", weight, None));
    let single = weight_device.iter().filter_map(|(device, weights)| {
        let setting = format!("blockIO.weightDevice.{device}.leafWeight");
        Some((setting, "blkio.leaf_weight_device", weights.leaf_weight?, Some(device)))
    });
    for (setting, file, weight, device) in whole.into_iter().chain(single) {
        match (supported, device) {
            (true, Some(device)) => {
                explain(draft.write(index, setting, file, format!("{device} {weight}")));
            }
            (true, None) => {
                draft.write(index, setting, file, weight);
            }
            (false, _) => {
                let why = match version {
                    Version::V1 => "this kernel has no leaf weights: they went with CFQ in Linux 5.0",
                    Version::V2 => "cgroup v2 has no leaf weights",
                };
                draft.report.add(setting, weight, why);
            }
        }
    }
}

/// The rate as the kernel keeps it: its greatest number stands for no limit, and reads back so.
fn kept(throttle: &Throttles<'_>, rate: Limit) -> Limit {
    match rate {
        Limit::Value(rate) if throttle.counts_requests() && rate >= u32::MAX.into() => Limit::Max,
        Limit::Value(rate) => Limit::from_bytes(rate),
        Limit::Max => Limit::Max,
    }
}

fn v1_throttles(draft: &mut Draft<'_>, index: usize) {
    for throttle in draft.want.change.block_io.throttles() {
        for (device, rate) in throttle.rates {
            let setting = format!("{}.{device}", throttle.setting);
            let rate = match kept(&throttle, *rate) {
                Limit::Value(rate) => rate,
                Limit::Max => 0,
            };
            explain(draft.write(index, setting, throttle.v1_file, format!("{device} {rate}")));
        }
    }
}

/// One write per device, with all four keys: those that are not asked for are as they are.
fn v2_throttles(draft: &mut Draft<'_>, index: usize) {
    const FILE: &str = "io.max";
    let throttles = draft.want.change.block_io.throttles();
    let devices: BTreeSet<_> = throttles.iter().flat_map(|throttle| throttle.rates.keys()).collect();
    if devices.is_empty() {
        return;
    }
    let now = draft.now_to_write(index, FILE);
    let now = Lines::parse(now.as_deref().unwrap_or_default());
    for device in devices {
        let mut line = device.to_string();
        let mut setting = None;
        for throttle in &throttles {
            let rate = throttle.rates.get(device).map(|rate| kept(throttle, *rate).to_string());
            if rate.is_some() {
                setting.get_or_insert(throttle.setting);
            }
            let now = now.get(&device.to_string(), throttle.v2_name).unwrap_or("max");
            line += &format!(" {}={}", throttle.v2_name, rate.as_deref().unwrap_or(now));
        }
        let setting = format!("{}.{device}", setting.unwrap_or_default());
        explain(draft.write(index, setting, FILE, line));
    }
}

/// The errnos of a device that is none.
pub(super) fn explain(step: &mut Step) -> &mut Step {
    const NO_DISK: Reaction = Reaction::Explain("no disk has these numbers (a partition is none)");
    step.on(Errno::NODEV, NO_DISK).on(Errno::NXIO, NO_DISK).on(
        Errno::INVAL,
        Reaction::Explain("the kernel does not take this line; the least rate of v2 is 2 before Linux 6.13"),
    )
}
