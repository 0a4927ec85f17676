//! Class and priorities of network packets, which are v1's alone.

use rustix::io::Errno;

use super::{Draft, Reaction};
use crate::host::{Controller, Mode};
use crate::resources::Network;

pub(super) fn plan(draft: &mut Draft<'_>) {
    let Network { class_id, priorities } = &draft.want.change.network;
    if let Some(class) = class_id {
        match draft.place_of(Controller::NetCls) {
            Some((index, _)) => {
                draft.write(index, "network.classID", "net_cls.classid", class);
            }
            // What every packet has.
            None if *class == 0 => {}
            None => draft.report.add("network.classID", class, why(draft, Controller::NetCls)),
        }
    }
    for (interface, priority) in priorities {
        let setting = format!("network.priorities.{interface}");
        match draft.place_of(Controller::NetPrio) {
            Some((index, _)) => {
                let step =
                    draft.write(index, setting, "net_prio.ifpriomap", format!("{interface} {priority}"));
                step.on(Errno::NODEV, Reaction::Explain("no network interface of the host has this name"));
            }
            None => draft.report.add(setting, priority, why(draft, Controller::NetPrio)),
        }
    }
}

fn why(draft: &Draft<'_>, controller: Controller) -> String {
    match draft.host.mode {
        Mode::V2 => {
            "cgroup v2 does not mark packets: match the cgroup by its path (nftables: socket cgroupv2)"
                .to_owned()
        }
        Mode::V1 | Mode::Hybrid => draft.why_without(controller),
    }
}
