//! Devices that come and go while the machine runs, each under the name of who needs it.

use std::collections::BTreeMap;

use super::begun::{Ahead, UNRECORDED};
use super::change::{ChangeOptions, Changed};
use super::{Sandbox, State, joined};
use crate::devices::{Beneath, DevicePolicy, DeviceRule, RuleKind};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::report::Report;

/// What becomes of a claim.
#[derive(Debug, Clone, Copy)]
pub enum Claim<'a> {
    /// It is made, or added to. Of a rule that allows, what else the device at its path needs is claimed with it
    /// ([`DeviceRule::with_needed`]); one that denies takes away from the claim. One of which nothing is left is released.
    Rules(&'a [DeviceRule]),
    /// It ends.
    Release,
}

impl Sandbox {
    /// Allows devices for as long as the claim lasts, beside what the profile, the caller's rules and other claims allow:
    /// hotplug of a VFIO device, a disk, a tap. The same again changes nothing; other rules under the same name are added.
    ///
    /// With a VFIO group comes `/dev/vfio/vfio`, with a VFIO device `/dev/iommu`, see [`DeviceRule::with_needed`].
    ///
    /// # Errors
    /// A rule for every device; what cannot be expressed ([`DevicePolicy::apply`]); those of [`Sandbox::change`]. Nothing has
    /// changed then.
    pub fn claim_devices(&self, name: &str, rules: &[DeviceRule]) -> Result<Report> {
        self.change_claim(name, Claim::Rules(rules), ChangeOptions::default())
    }

    /// Ends a claim: denies what nothing else allows, neither the profile, nor the caller's rules, nor another claim. What is
    /// open stays open.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such claim; those of [`Sandbox::change`].
    pub fn release_devices(&self, name: &str) -> Result<Report> {
        self.change_claim(name, Claim::Release, ChangeOptions::default())
    }

    /// [`Sandbox::claim_devices`] or [`Sandbox::release_devices`] with options.
    pub fn change_claim(&self, name: &str, claim: Claim<'_>, options: ChangeOptions) -> Result<Report> {
        self.change_claim_ahead(name, claim, options, UNRECORDED)
    }

    /// The same; what takes it back goes `ahead`.
    pub(super) fn change_claim_ahead(
        &self,
        name: &str,
        claim: Claim<'_>,
        options: ChangeOptions,
        ahead: Ahead<'_>,
    ) -> Result<Report> {
        let mut state = self.locked();
        let planned = of_claim(&state, name, claim, &options)?;
        self.carry_out_both(&mut state, planned, &options, ahead, |apart| {
            let options = ChangeOptions { unread: Report::default(), ..options.clone() };
            apart.change_claim_ahead(name, claim, options, ahead)
        })
    }

    /// The steps of [`Sandbox::change_claim`], without doing them.
    pub fn plan_claim(&self, name: &str, claim: Claim<'_>, options: ChangeOptions) -> Result<Plan> {
        let state = self.known();
        let planned = of_claim(&state, name, claim, &options)?;
        let mut plan = self.think(&state, planned, &options)?;
        if let Some(apart) = &self.apart {
            let options = ChangeOptions { unread: Report::default(), ..options };
            plan.append(apart.plan_claim(name, claim, options)?);
        }
        Ok(plan)
    }

    /// Puts rules and claims back as they were in an earlier state of this sandbox: for a caller that changed them and then
    /// could not keep the new state.
    pub fn put_back_devices(&self, before: &State) -> Result<Report> {
        let mut state = self.locked();
        let devices = Devices::of(before);
        let mut resources = state.resources.clone();
        resources.devices.clone_from(&before.resources.devices);
        let planned = Changed { resources, ..Changed::of_devices(&state, devices, Report::default()) };
        let options = ChangeOptions::default();
        self.carry_out_both(&mut state, planned, &options, UNRECORDED, |apart| match &before.apart {
            Some(before) => apart.put_back_devices(before),
            None => Ok(Report::default()),
        })
    }

    /// The claims: what each of them allows.
    pub fn claims(&self) -> BTreeMap<String, Vec<DeviceRule>> {
        self.known().claims.clone()
    }
}

fn of_claim(state: &State, name: &str, claim: Claim<'_>, options: &ChangeOptions) -> Result<Changed> {
    let (devices, report) = Devices::of(state).claimed(name, claim)?;
    let report = joined(options.unread.clone(), report);
    Ok(Changed::of_devices(state, devices, report))
}

/// The devices of a sandbox: what stays, what is claimed, and both together.
#[derive(Debug, Clone)]
pub(super) struct Devices {
    /// What is in force.
    pub(super) policy: DevicePolicy,
    base: DevicePolicy,
    claims: BTreeMap<String, Vec<DeviceRule>>,
}

impl Devices {
    pub(super) fn of(state: &State) -> Self {
        Self {
            policy: state.devices.clone(),
            base: state.unclaimed.as_ref().unwrap_or(&state.devices).clone(),
            claims: state.claims.clone(),
        }
    }

    pub(super) fn keep_in(self, state: &mut State) {
        state.unclaimed = (!self.claims.is_empty()).then_some(self.base);
        state.devices = self.policy;
        state.claims = self.claims;
    }

    /// The caller's rules, below the claims. See [`DevicePolicy::changed`].
    pub(super) fn changed(
        self,
        rules: &[DeviceRule],
        base: impl FnOnce() -> Result<Vec<DeviceRule>>,
        required: &[DeviceRule],
    ) -> Result<(Self, Report)> {
        let (base, mut report) = self.base.changed(rules, base, required)?;
        for rule in rules.iter().filter(|rule| !rule.allow) {
            for (name, claimed) in &self.claims {
                if claimed.iter().any(|claimed| claimed.overlaps(rule)) {
                    let why = format!("what the claim {name} needs of it stays allowed until it is released");
                    report.add("devices", rule.sentence(), why);
                }
            }
        }
        Self { base, ..self }.summed(report)
    }

    fn claimed(mut self, name: &str, claim: Claim<'_>) -> Result<(Self, Report)> {
        let mut report = Report::default();
        match claim {
            Claim::Release => {
                self.claims.remove(name).ok_or_else(|| no_such_claim(name))?;
            }
            Claim::Rules(rules) => {
                let left = self.of_rules(name, rules, &mut report)?;
                if left.is_empty() {
                    self.claims.remove(name);
                } else {
                    self.claims.insert(name.to_owned(), left);
                }
            }
        }
        self.summed(report)
    }

    /// What a claim is after these rules.
    fn of_rules(&self, name: &str, rules: &[DeviceRule], report: &mut Report) -> Result<Vec<DeviceRule>> {
        check_name(name)?;
        let had = self.claims.get(name);
        if had.is_none() && !rules.iter().any(|rule| rule.allow) {
            return Err(no_such_claim(name));
        }
        let (mut own, _) = DevicePolicy::from_rules(had.map_or(&[], Vec::as_slice))?;
        for rule in rules {
            if rule.kind == RuleKind::All {
                let why = "a claim names the devices that it needs, not every device";
                return Err(Error::invalid("devices", rule.sentence(), why));
            }
            let (needed, notes) = rule.with_needed(Beneath::default());
            // The caller may have looked that up itself.
            if !needed.iter().all(|rule| rules.contains(rule)) {
                report.append(notes);
            }
            for rule in &needed {
                own.apply(rule, report)?;
            }
        }
        Ok(own.to_rules().split_off(1))
    }

    /// With every claim on top. A device that two need is allowed twice, and so stays when one lets go.
    fn summed(mut self, mut report: Report) -> Result<(Self, Report)> {
        self.policy = self.base.clone();
        for (name, rules) in &self.claims {
            for rule in rules {
                self.policy.apply(rule, &mut report).map_err(|error| {
                    let why = format!("the claim {name} cannot be met: {}", error.message());
                    error.with_message(why)
                })?;
            }
        }
        Ok((self, report))
    }
}

fn no_such_claim(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such claim").with_setting("claim").with_value(name)
}

/// What is a key in JSON, an argument of a command, and may be the address of a PCI device.
fn check_name(name: &str) -> Result<()> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    if (1..=128).contains(&name.len()) && name.bytes().all(is_fine) {
        return Ok(());
    }
    let allowed = "a claim is named with 1 to 128 letters, digits and _ . : -";
    Err(Error::invalid("claim", name, allowed))
}

#[cfg(test)]
mod tests;
