//! `devices`: what a live sandbox may open, and what rules mean.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ringfence::devices::DeviceRule;
use ringfence::{
    DevicePolicy, Host, Mode, Profile, Resources, Result, Sandbox, SandboxConfig, SandboxId, State,
};
use serde::Serialize;
use serde_json::json;

use crate::commands::set::options;
use crate::context::Context;
use crate::exit::Exit;
use crate::limits::{node_of, node_on, read};
use crate::output::Table;

/// List, allow, deny and check devices
#[derive(Debug, Args)]
pub struct Devices {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List what a sandbox may open
    Ls {
        /// Name of the sandbox
        id: SandboxId,
    },
    /// Allow devices in a live sandbox, on top of what it may open
    Allow(Change),
    /// Deny devices in a live sandbox
    Deny(Change),
    Check(Check),
}

#[derive(Debug, Args)]
struct Change {
    /// Name of the sandbox
    id: SandboxId,

    /// Devices: /dev/PATH[:rwm], or "c|b|a MAJOR:MINOR [rwm]" with *
    #[arg(required = true, value_name = "RULE")]
    rules: Vec<String>,
}

/// Tell whether an access would be allowed, and by which rule: exit status 0 if it is, 4 if not
///
/// Without --id nothing is asked of this machine: the rules are taken as on a standard host that has every device of the
/// profile, on top of the runtime defaults.
#[derive(Debug, Args)]
struct Check {
    /// Ask for this sandbox, as it is now
    #[arg(long, conflicts_with_all = ["resources", "profile"])]
    id: Option<SandboxId>,

    /// Ask for the device rules of this OCI LinuxResources object; - is standard input
    #[arg(long, value_name = "FILE")]
    resources: Option<PathBuf>,

    /// Ask with what this hypervisor opens: none, default (any), qemu, cloud-hypervisor, firecracker, kata
    /// [default: default]
    #[arg(long)]
    profile: Option<Profile>,

    /// The access: /dev/PATH[:rwm], or "c|b MAJOR:MINOR [rwm]"
    rule: String,
}

impl Devices {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        match &self.action {
            Action::Ls { id } => list(context, id),
            Action::Allow(change) => change.run(context, true),
            Action::Deny(change) => change.run(context, false),
            Action::Check(check) => check.run(context),
        }
    }
}

#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    policy: &'a DevicePolicy,
    claims: &'a BTreeMap<String, Vec<DeviceRule>>,
}

fn list(context: &Context, id: &SandboxId) -> Result<Exit> {
    let State { devices, claims, .. } = context.state(&context.host()?, id)?;
    let mut table = Table::new(["", "TYPE", "MAJOR:MINOR", "ACCESS"]);
    for rule in devices.to_rules() {
        let verdict = if rule.allow { "allow" } else { "deny" };
        table.row([
            verdict.to_owned(),
            rule.kind.to_string(),
            rule.numbers.to_string(),
            rule.access.to_string(),
        ]);
    }
    context.output.object(&Listed { policy: &devices, claims: &claims }, context.output.table(&table))?;
    Ok(Exit::Done)
}

impl Change {
    fn run(&self, context: &Context, allow: bool) -> Result<Exit> {
        let host = context.host()?;
        let rules: Vec<_> = self
            .rules
            .iter()
            .map(|rule| DeviceRule::parse(allow, rule, node_on(&host)))
            .collect::<Result<_>>()?;
        let change = Resources::new().devices(rules);
        let (entry, sandbox) = context.open(&host, &self.id)?;
        let options = options(context, Default::default(), Default::default());
        context.announce(|| sandbox.plan_change(&change, options.clone()))?;
        let report = sandbox.change_with(&change, options)?;
        entry.save(&sandbox.state())?;
        context.output.report(&report);
        let devices = sandbox.devices();
        context.output.done(&json!({"id": self.id, "devices": devices, "report": report}), "")?;
        Ok(Exit::Done)
    }
}

impl Check {
    fn run(&self, context: &Context) -> Result<Exit> {
        let rule = &self.rule;
        let (policy, asked) = match &self.id {
            Some(id) => {
                let host = context.host()?;
                (context.state(&host, id)?.devices, DeviceRule::parse(true, rule, node_on(&host))?)
            }
            None => {
                let host = Host::standard(Mode::V2, false);
                (self.policy(&host)?, DeviceRule::parse(true, rule, node_of(&host))?)
            }
        };
        let decision = policy.check_rule(&asked);
        let verdict = if decision.allowed { "allowed" } else { "denied" };
        let by = if decision.by.allow { "allow" } else { "deny" };
        context.output.object(&decision, format_args!("{verdict}, by the rule: {by} {}", decision.by))?;
        Ok(if decision.allowed { Exit::Done } else { Exit::Denied })
    }

    fn policy(&self, host: &Host) -> Result<DevicePolicy> {
        let resources = match &self.resources {
            Some(file) => Resources::from_oci_json(&read(file)?)?.0,
            None => Resources::new(),
        };
        let config = SandboxConfig::new("check".parse()?)
            .resources(Resources::new().devices(resources.devices))
            .profile(self.profile.unwrap_or_default());
        Ok(Sandbox::intent(host, &config)?.devices)
    }
}
