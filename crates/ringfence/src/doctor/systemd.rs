//! What systemd means for sandboxes.

use super::{Facts, Finding};
use crate::host::{Host, Mode};

/// Properties that limits are sent as, and the versions of systemd that brought them.
const PROPERTIES: [(&str, u32); 4] =
    [("MemoryMin", 240), ("CPUQuotaPeriodUSec", 242), ("AllowedCPUs", 244), ("MemoryZSwapMax", 253)];

/// The oldest version that is tested.
const TESTED: u32 = 252;

/// The last version that runs on cgroup v1.
const LAST_ON_V1: u32 = 257;

impl Facts {
    pub(super) fn about_systemd(&self, found: &mut Vec<Finding>) {
        let Ok(host) = &self.host else { return };
        found.push(self.systemd(host));
        if !host.systemd {
            return;
        }
        found.push(self.bus(host));
        if host.rootless {
            found.push(self.lingering());
        }
    }

    fn systemd(&self, host: &Host) -> Finding {
        const CHECK: &str = "systemd";
        if !host.systemd {
            let process = self.process_1.as_deref().unwrap_or("something else");
            return Finding::good(CHECK, format!("process 1 is {process}: the driver is cgroupfs"));
        }
        let Some(version) = self.systemd_version else {
            return Finding::good(CHECK, "process 1, of an unknown version");
        };
        let found = format!("process 1, version {version}");
        let lacks: Vec<_> =
            PROPERTIES.iter().filter(|(_, since)| version < *since).map(|(name, _)| *name).collect();
        if host.mode != Mode::V2 && version >= LAST_ON_V1 {
            return Finding::note(CHECK, format!("{found}, the last one on cgroup v1"))
                .advise("boot with systemd.unified_cgroup_hierarchy=1");
        }
        if version < TESTED {
            return Finding::note(
                CHECK,
                format!("{found}, older than what is tested; without {}", lacks.join(", ")),
            )
            .advise(format!("use systemd {TESTED} or newer"));
        }
        if lacks.is_empty() {
            return Finding::good(CHECK, found);
        }
        Finding::good(CHECK, format!("{found}, without {}: a file is written instead", lacks.join(", ")))
    }

    fn bus(&self, host: &Host) -> Finding {
        let check = if host.rootless { "user-bus" } else { "system-bus" };
        let socket = self.bus.socket.display();
        let Some(failure) = &self.bus.failure else {
            return Finding::good(check, format!("connected to {socket}"));
        };
        let advice = if host.rootless {
            let (user, id) = (self.user.argument(), self.user.id);
            format!("loginctl enable-linger {user}, and export XDG_RUNTIME_DIR=/run/user/{id}")
        } else {
            "systemctl start dbus.socket; in a container, pass the socket in".to_owned()
        };
        Finding::limited(check, format!("{socket}: {failure}: no units can be made")).advise(advice)
    }

    fn lingering(&self) -> Finding {
        const CHECK: &str = "lingering";
        let user = self.user.argument();
        if self.user.lingers {
            return Finding::good(CHECK, format!("the manager of {user} stays when they log out"));
        }
        Finding::note(CHECK, format!("the manager of {user}, and every sandbox, ends when they log out"))
            .advise(format!("loginctl enable-linger {user}"))
    }
}
