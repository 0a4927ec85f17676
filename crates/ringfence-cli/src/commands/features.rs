//! `features`: what this build and this host can do.

use std::fmt;

use clap::Args;
use ringfence::terminal::Escaped;
use ringfence::{Host, Profile, Result, STATE_VERSION};
use serde::Serialize;

use crate::context::Context;
use crate::exit::Exit;
use crate::output::Format;

/// Print what this build and this host can do: JSON, unless a table is asked for; input of `plan --host`
#[derive(Debug, Args)]
pub struct Features {}

#[derive(Debug, Serialize)]
struct Printed {
    version: &'static str,
    /// The newest format of states, which it writes; it reads the older ones too.
    state_version: u32,
    drivers: [&'static str; 2],
    profiles: Vec<&'static str>,
    #[serde(flatten)]
    host: Host,
}

impl Features {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let printed = Printed {
            version: env!("CARGO_PKG_VERSION"),
            state_version: STATE_VERSION,
            drivers: ["cgroupfs", "systemd"],
            profiles: Profile::ALL.map(Profile::name).to_vec(),
            host: context.host()?,
        };
        context.output.clone().or(Format::Json).object(&printed, &printed)?;
        Ok(Exit::Done)
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, state_version, drivers, profiles, host } = self;
        writeln!(f, "{:<13}{version} (states of version {state_version})", "ringfence")?;
        writeln!(f, "{:<13}{}", "drivers", drivers.join(", "))?;
        writeln!(f, "{:<13}{}", "profiles", profiles.join(", "))?;
        let systemd = if host.systemd { ", systemd" } else { "" };
        writeln!(f, "{:<13}{}{systemd}", "mode", host.mode.as_str())?;
        for (number, hierarchy) in host.hierarchies.iter().enumerate() {
            let heading = if number == 0 { "hierarchies" } else { "" };
            let names = hierarchy.controllers.iter().map(|controller| controller.as_str());
            let names = names.chain(hierarchy.name.as_deref()).collect::<Vec<_>>().join(",");
            let root = Escaped(&hierarchy.root.to_string_lossy()).to_string();
            writeln!(f, "{heading:<13}{root:<32} {}", Escaped(&names))?;
        }
        if host.rootless {
            let delegated = host.delegation.as_ref().map(|delegation| format!("/{}", delegation.path));
            writeln!(f, "{:<13}{}", "delegated", Escaped(delegated.as_deref().unwrap_or("nothing")))?;
        }
        let able = serde_json::to_value(&host.capabilities).map_err(|_| fmt::Error)?;
        let able = able.as_object().into_iter().flatten().filter(|(_, able)| able.as_bool() == Some(true));
        let able: Vec<_> = able.map(|(name, _)| name.as_str()).collect();
        writeln!(f, "{:<13}{}", "kernel has", able.join(", "))?;
        for (number, path) in host.devices.keys().enumerate() {
            let heading = if number == 0 { "devices" } else { "" };
            writeln!(f, "{heading:<13}{}", Escaped(&path.to_string_lossy()))?;
        }
        writeln!(f, "{:<13}{} (memory nodes {})", "CPUs", host.cpus, host.mems)
    }
}
