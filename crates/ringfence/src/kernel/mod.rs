//! The only place with raw system calls and `unsafe`.

pub(crate) mod affinity;
pub(crate) mod bpf;
#[cfg(feature = "systemd")]
pub(crate) mod dbus;
pub(crate) mod descriptors;
pub(crate) mod dir;
pub(crate) mod hypervisor;
pub(crate) mod poll;
pub(crate) mod probe;
pub(crate) mod proc;
pub(crate) mod signals;
pub(crate) mod spawn;
pub(crate) mod watch;
