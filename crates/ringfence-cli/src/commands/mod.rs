//! One file per subcommand.

pub mod attach;
pub mod classify;
pub mod convert;
pub mod create;
pub mod devices;
pub mod diff;
pub mod doctor;
pub mod exec;
pub mod explain;
pub mod features;
pub mod freeze;
pub mod gc;
pub mod hold;
pub mod kill;
pub mod ls;
pub mod place_vcpus;
pub mod plan;
pub mod ps;
pub mod repair;
pub mod rm;
pub mod run;
pub mod set;
pub mod show;
pub mod stats;
pub mod watch;
