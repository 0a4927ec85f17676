//! The connection to systemd that all copies of a host share, and where systemd keeps its units.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::Host;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::proc;
use crate::systemd::Manager;

/// One connection, made when it is first needed. No part of the facts.
#[derive(Debug, Clone, Default)]
pub struct SharedManager(Arc<OnceLock<Manager>>);

/// Hosts are equal by their facts.
impl PartialEq for SharedManager {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for SharedManager {}

impl Host {
    /// Whether systemd is process 1, and the bus is there on which this process would reach it.
    pub fn systemd_is_reachable(&self) -> bool {
        let address = address(self.rootless);
        let path = address.split([';', ',']).find_map(|part| part.strip_prefix("unix:path="));
        // An address of another kind is believed.
        cfg!(feature = "systemd") && self.systemd && path.is_none_or(|path| Path::new(path).exists())
    }

    /// The version of the systemd that this process would speak with, such as `257.9-1~deb13u1`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where it is not process 1; [`ErrorKind::Systemd`] where it cannot be reached.
    pub fn systemd_version(&self) -> Result<String> {
        self.manager()?.version()
    }

    /// systemd's manager: the system's, or of an unprivileged user the user's own.
    pub(crate) fn manager(&self) -> Result<&Manager> {
        if !self.systemd {
            let why = "systemd is not process 1 here: use a path, such as /a/b, and the cgroupfs driver";
            return Err(Error::new(ErrorKind::Unsupported, why).with_setting("driver").with_value("systemd"));
        }
        Ok(self.manager.0.get_or_init(|| Manager::new(address(self.rootless))))
    }
}

/// The address of the bus on which it answers, as D-Bus has addresses.
fn address(user: bool) -> String {
    let (variable, otherwise) = if user {
        ("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}/bus", runtime_directory()))
    } else {
        ("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket".to_owned())
    };
    std::env::var(variable).ok().filter(|address| !address.is_empty()).unwrap_or(otherwise)
}

/// `$XDG_RUNTIME_DIR`.
pub(crate) fn runtime_directory() -> String {
    let given = std::env::var("XDG_RUNTIME_DIR").ok().filter(|directory| !directory.is_empty());
    // Where pam_systemd would have put it.
    given.unwrap_or_else(|| format!("/run/user/{}", rustix::process::geteuid().as_raw()))
}

/// Where systemd keeps its units, below the root of each hierarchy, without slashes at its ends.
pub(super) fn root(user: bool) -> String {
    let root = if user {
        let uid = rustix::process::geteuid().as_raw();
        format!("user.slice/user-{uid}.slice/user@{uid}.service")
    } else {
        // Its own scope is in it.
        let own = proc::cgroups(1).unwrap_or_default();
        let own = own.iter().find(|(names, _)| names.is_empty() || names == "name=systemd");
        own.map_or(String::new(), |(_, path)| path.trim_end_matches("/init.scope").to_owned())
    };
    root.trim_matches('/').to_owned()
}
