//! Carrying a plan out.

pub(crate) mod cgroupfs;
mod undo;
