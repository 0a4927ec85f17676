//! Which devices a sandbox may open: rules, the policy they make, and its two forms in the kernel.
//!
//! A [`DeviceRule`] is what a caller says, a [`DevicePolicy`] what all rules together mean, a [`Profile`] what a
//! hypervisor needs. Version 1 of cgroups takes a policy as writes to `devices.allow` and `devices.deny`
//! (`transition`), version 2 as an eBPF program (`program`) that a `filter` attaches.

mod access;
pub(crate) mod filter;
mod index;
#[cfg(any(test, fuzzing))]
pub(crate) mod kernel_list;
mod needed;
mod number;
mod oci;
mod policy;
mod profile;
pub(crate) mod program;
#[cfg(test)]
pub(crate) mod real_cgroup;
mod rule;
pub(crate) mod transition;

pub use access::Access;
pub use needed::Beneath;
pub use number::DeviceNumber;
pub use policy::{Decision, DevicePolicy, Exception, Verdict};
pub use profile::{Entry, Profile, Subject, runtime_defaults};
pub use rule::{DeviceKind, DeviceRule, Numbers, RuleKind};
