//! `devices`: what a live sandbox may open, and what rules mean.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ringfence::devices::{Beneath, DeviceRule};
use ringfence::{
    Claim, DevicePolicy, Entry, Host, Mode, Profile, Report, Resources, Result, Sandbox, SandboxConfig,
    SandboxId, State,
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
    Allow(Allow),
    Deny(Deny),
    /// End a claim: deny what neither the profile, nor other rules, nor another claim allows
    Release {
        /// Name of the sandbox
        id: SandboxId,

        /// Name of the claim
        claim: String,
    },
    Check(Check),
}

/// Allow devices in a live sandbox, on top of what it may open
///
/// What else a device at a path needs is allowed with it: /dev/vfio/vfio with a VFIO group, /dev/iommu with a VFIO device,
/// the paths of a multipath disk. A disk image in a file needs no rule.
///
/// A claim counts: a device stays allowed until the last claim that needs it is released, and what the profile or other
/// rules allow stays in any case. The same claim again changes nothing, other devices are added to it.
#[derive(Debug, Args)]
struct Allow {
    #[command(flatten)]
    change: Change,

    /// Allow also the block devices on which a disk lies, recursively: whoever can open these has all that is on them
    #[arg(long)]
    beneath: bool,
}

/// Deny devices in a live sandbox
#[derive(Debug, Args)]
struct Deny {
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, Args)]
struct Change {
    /// Name of the sandbox
    id: SandboxId,

    /// Devices: /dev/PATH[:rwm], or "c|b|a MAJOR:MINOR [rwm]" with *
    #[arg(required = true, value_name = "RULE")]
    rules: Vec<String>,

    /// The claim that gets them, or gives them up, until `devices release`
    #[arg(long, value_name = "NAME")]
    claim: Option<String>,
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
            Action::Allow(Allow { change, beneath }) => {
                let beneath = if *beneath { Beneath::All } else { Beneath::default() };
                change.run(context, |rule, host| {
                    let rule = DeviceRule::parse(true, rule, node_on(host))?;
                    Ok(rule.with_needed(beneath))
                })
            }
            Action::Deny(Deny { change }) => change.run(context, |rule, host| {
                Ok((vec![DeviceRule::parse(false, rule, node_on(host))?], Report::default()))
            }),
            Action::Release { id, claim } => {
                let host = context.host()?;
                let (entry, sandbox) = context.open(&host, id)?;
                claim_as(context, id, &entry, &sandbox, claim, Claim::Release, Report::default())
            }
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
    let mut table = Table::new(["", "TYPE", "MAJOR:MINOR", "ACCESS", "CLAIMS"]);
    for rule in devices.to_rules() {
        let verdict = if rule.allow { "allow" } else { "deny" };
        let is_same = |other: &DeviceRule| (other.kind, other.numbers) == (rule.kind, rule.numbers);
        let claimed = claims.iter().filter(|(_, rules)| rules.iter().any(is_same));
        table.row([
            verdict.to_owned(),
            rule.kind.to_string(),
            rule.numbers.to_string(),
            rule.access.to_string(),
            claimed.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
        ]);
    }
    context.output.tables(&Listed { policy: &devices, claims: &claims }, &[table])?;
    Ok(Exit::Done)
}

impl Change {
    fn run(
        &self,
        context: &Context,
        read: impl Fn(&str, &Host) -> Result<(Vec<DeviceRule>, Report)>,
    ) -> Result<Exit> {
        let host = context.host()?;
        let (mut rules, mut notes) = (Vec::new(), Report::default());
        for rule in &self.rules {
            let (mut read, noted) = read(rule, &host)?;
            rules.append(&mut read);
            notes.append(noted);
        }
        let (entry, sandbox) = context.open(&host, &self.id)?;
        if let Some(claim) = &self.claim {
            return claim_as(context, &self.id, &entry, &sandbox, claim, Claim::Rules(&rules), notes);
        }
        let change = Resources::new().devices(rules);
        let options = options(context, notes);
        context.announce(|| sandbox.plan_change(&change, options.clone()))?;
        let report = entry.change(&sandbox, &change, options)?;
        done(context, &self.id, &sandbox, &report)
    }
}

fn claim_as(
    context: &Context,
    id: &SandboxId,
    entry: &Entry,
    sandbox: &Sandbox,
    name: &str,
    claim: Claim<'_>,
    notes: Report,
) -> Result<Exit> {
    let options = options(context, notes);
    context.announce(|| sandbox.plan_claim(name, claim, options.clone()))?;
    let report = entry.change_claim(sandbox, name, claim, options)?;
    done(context, id, sandbox, &report)
}

fn done(context: &Context, id: &SandboxId, sandbox: &Sandbox, report: &Report) -> Result<Exit> {
    context.output.report(report);
    let State { devices, claims, .. } = sandbox.state();
    context.output.done(&json!({"id": id, "devices": devices, "claims": claims, "report": report}), "")?;
    Ok(Exit::Done)
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
