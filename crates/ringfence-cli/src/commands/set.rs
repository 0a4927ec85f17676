//! `set`: other limits for a live sandbox.

use std::str::FromStr;

use clap::Args;
use ringfence::{ChangeOptions, Error, ErrorKind, Pin, Report, Resources, Result, SandboxId, State};
use serde_json::json;

use crate::commands::classify;
use crate::context::Context;
use crate::exit::Exit;
use crate::limits::Limits;

/// Change limits of a live sandbox: those that are given, all of them or none
#[derive(Debug, Args)]
pub struct Set {
    /// Name of the sandbox
    id: SandboxId,

    #[command(flatten)]
    limits: Limits,

    /// Pin the guest's CPUs: matching, exclusive, as for create; or none
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "matching")]
    pin: Option<Pinning>,

    /// Lower a memory limit below what is in use, although the kernel (v2) then kills at once
    #[arg(long)]
    force: bool,
}

/// To be pinned, or no longer.
#[derive(Debug, Clone, Copy)]
struct Pinning(Option<Pin>);

impl FromStr for Pinning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let pin = if text == "none" { None } else { Some(text.parse()?) };
        Ok(Self(pin))
    }
}

impl Set {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let (change, unread) = change(&self.limits)?;
        let (overhead, each) = (self.limits.overhead(), self.limits.each());
        let says_nothing = self.limits.resources.is_none()
            && change.is_empty()
            && overhead.is_empty()
            && each.is_empty()
            && self.pin.is_none();
        if says_nothing {
            return Err(Error::new(ErrorKind::InvalidInput, "no limit is given: see `ringfence set --help`"));
        }
        let host = context.host()?;
        let (entry, sandbox) = context.open(&host, &self.id)?;
        keeps_devices(&change, &sandbox.state())?;
        let pin = self.pin.map(|Pinning(pin)| pin);
        let options = ChangeOptions { force: self.force, overhead, each, pin, ..options(context, unread) };
        context.announce(|| sandbox.plan_change(&change, options.clone()))?;
        let mut report = entry.change(&sandbox, &change, options)?;
        let pinned = classify::pin(context, &host, &entry, &sandbox);
        context.unsupported().mind(&pinned)?;
        report.append(pinned);
        context.output.report(&report);
        context.output.done(&json!({"id": self.id, "report": report}), "")?;
        Ok(Exit::Done)
    }
}

/// The change that limits ask for.
pub fn change(limits: &Limits) -> Result<(Resources, Report)> {
    let (mut change, unread) = limits.document()?;
    limits.apply(&mut change);
    Ok((change, unread))
}

/// Refuses another device list than the one that is in force: what a live sandbox may open is changed rule by rule, in plain
/// sight. Engines send the whole document with every update, with the list as it was at the creation.
pub fn keeps_devices(change: &Resources, state: &State) -> Result<()> {
    match change.devices.first() {
        Some(rule) if !state.has_device_rules(&change.devices) => {
            let why = "this list of device rules is not the one in force: devices of a live sandbox are changed by \
                       `ringfence devices allow|deny`";
            Err(Error::invalid("devices", rule, why))
        }
        _ => Ok(()),
    }
}

/// How the global options want a change to be made.
pub fn options(context: &Context, unread: Report) -> ChangeOptions {
    ChangeOptions { unsupported: context.unsupported(), unread, ..ChangeOptions::default() }
}
