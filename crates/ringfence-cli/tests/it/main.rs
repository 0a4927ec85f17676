//! The command on a real kernel, in the cgroup mode of the machine that runs it. `testbed/testbed run` runs each module in
//! the modes and under the drivers that it names.

#[macro_use]
#[path = "../../../ringfence/tests/it/support/testbed.rs"]
mod testbed;

mod support;

mod at_once;
mod bad_input;
mod children;
mod classify;
mod compare;
mod containers;
mod detach;
mod devices;
mod doctor;
mod escaping;
mod explain;
mod failures;
#[cfg(target_arch = "x86_64")]
mod faults;
mod frozen_ancestor;
mod full;
mod histories;
mod hotplug;
mod inside;
mod lifecycle;
mod limits;
mod overhead;
mod ownership;
mod parent;
mod plan;
mod plan_elsewhere;
mod qemu;
mod readme;
mod reload;
mod rootless;
mod rootless_vm;
mod security;
mod silent_bus;
mod stress;
mod systemd;
mod tenant;
mod unstoppable;
mod users;
mod watch;
