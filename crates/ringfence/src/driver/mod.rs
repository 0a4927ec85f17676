//! Carrying a plan out.

pub(crate) mod cgroupfs;
pub(crate) mod dirs;
pub(crate) mod observe;
mod refusal;
pub(crate) mod systemd;
pub(crate) mod undo;

#[cfg(test)]
mod on_a_kernel;
#[cfg(feature = "systemd")]
#[cfg(test)]
mod on_systemd;
