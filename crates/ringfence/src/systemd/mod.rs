//! systemd, over D-Bus: the units that carry sandboxes.

#[cfg(feature = "systemd")]
mod bus;
mod limit;
#[cfg(feature = "systemd")]
mod manager;
#[cfg(feature = "systemd")]
mod socket;
#[cfg(not(feature = "systemd"))]
mod without;

#[cfg(feature = "systemd")]
#[cfg(test)]
pub(crate) mod on_systemd;
pub(crate) mod property;

pub(crate) use limit::limit;
pub use limit::{SystemdLimit, limit_systemd};
#[cfg(feature = "systemd")]
pub(crate) use manager::{Manager, Started, Told};
#[cfg(not(feature = "systemd"))]
pub(crate) use without::{Manager, Started, Told};

/// How the descriptions of units begin that are ours.
pub(crate) const OURS: &str = "Ringfence sandbox ";
