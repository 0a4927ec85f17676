//! Changing a sandbox: what it leaves as the state, and what is planned for it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::begun::{Ahead, UNRECORDED};
use super::claims::Devices;
use super::layout::{self, EachThread, Shares};
use super::state::Anew;
use super::{Pin, Sandbox, State, base_rules, joined};
use crate::devices::filter::Override;
use crate::devices::{DeviceRule, Profile, RuleKind};
use crate::driver::dirs::Dirs;
use crate::driver::observe::plan_on;
use crate::error::Result;
use crate::host::{Controller, Host, Version};
use crate::plan::convert::swap_to_v2;
use crate::plan::{self, DeviceWant, PartWant, Plan, Unsupported, Want};
use crate::report::Report;
use crate::resources::{Limit, Resources, most_burst};

/// How a change is to be made.
#[derive(Debug, Clone, Default)]
pub struct ChangeOptions {
    /// Lower a memory limit below what is in use: on v2 the kernel kills at once.
    pub force: bool,
    /// What is done about settings that this host does not have.
    pub unsupported: Unsupported,
    /// The fields of the document, from which the change was read, that nobody reads: part of the report.
    pub unread: Report,
    /// What is to become different for the overhead, where it has a part of its own.
    pub overhead: Resources,
    /// The same for each thread of a kind by itself.
    pub each: EachThread,
    /// Other pinning of vCPUs, or none, for the next [`Sandbox::pin_vcpus`]; see [`Sandbox::set_pin`].
    pub pin: Option<Option<Pin>>,
}

impl Sandbox {
    /// The steps of [`Sandbox::change`], without doing them.
    pub fn plan_change(&self, change: &Resources, options: ChangeOptions) -> Result<Plan> {
        let (options, theirs) = self.shared_out(change, options)?;
        let state = self.known();
        let planned = Changed::of(&state, change, &options, &self.host)?;
        let mut plan = self.think(&state, planned, &options)?;
        if let (Some(apart), Some((change, options))) = (&self.apart, theirs) {
            plan.append(apart.plan_change(&change, options)?);
        }
        Ok(plan)
    }

    pub(super) fn think(&self, state: &State, planned: Changed, options: &ChangeOptions) -> Result<Plan> {
        let mut plan = match self.present_or_planned(state)? {
            Some(cgroup) => {
                let before = state.as_it_is();
                let want = planned.want(state, &before, options);
                plan_on(&self.host, &mut Dirs::of(&cgroup), &want)?
            }
            None => planned.plan_anew(&self.host, state, options.unsupported)?,
        };
        plan.report = joined(planned.report, plan.report);
        Ok(plan)
    }

    /// Changes limits: merges, all or nothing. Device rules are taken after those from before; the list that the sandbox has
    /// already, which engines send with every update, changes nothing.
    pub fn change(&self, change: &Resources) -> Result<Report> {
        self.change_with(change, ChangeOptions::default())
    }

    /// [`Sandbox::change`] with options. [`Entry::change`](crate::Entry::change) does it so that a crash leaves nothing half
    /// done.
    pub fn change_with(&self, change: &Resources, options: ChangeOptions) -> Result<Report> {
        self.change_ahead(change, options, UNRECORDED)
    }

    /// The same; what takes it back goes `ahead`.
    pub(super) fn change_ahead(
        &self,
        change: &Resources,
        options: ChangeOptions,
        ahead: Ahead<'_>,
    ) -> Result<Report> {
        let (options, theirs) = self.shared_out(change, options)?;
        let mut state = self.locked();
        if let Some(Some(pin)) = options.pin {
            state.allows_pin(pin)?;
        }
        let planned = Changed::of(&state, change, &options, &self.host)?;
        let mut report =
            self.carry_out_both(&mut state, planned, &options, ahead, |apart| match &theirs {
                Some((change, options)) => apart.change_ahead(change, options.clone(), ahead),
                None => Ok(Report::default()),
            })?;
        state.pin = options.pin.unwrap_or(state.pin);
        if !(options.each.is_empty() || state.vcpus.is_empty()) {
            drop(state);
            report.append(self.place_again()?);
        } else if let Some(cgroup) = self.present(&state)? {
            let before = state.vcpus.clone();
            self.keep_pinned(&cgroup, &mut state, &before, &BTreeSet::new(), &mut report);
        }
        Ok(report)
    }

    /// Carries a change out, and `also`: if that fails, the change is undone.
    pub(super) fn carry_out(
        &self,
        state: &mut State,
        mut planned: Changed,
        options: &ChangeOptions,
        ahead: Ahead<'_>,
        also: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Report> {
        options.unsupported.mind(&planned.report)?;
        let mut made = None;
        if let Some(cgroup) = self.present_or_planned(state)? {
            let before = state.as_it_is();
            made = match cgroup.change_and(&planned.want(state, &before, options), ahead, also) {
                // A scope that ended at this moment: nothing is left of it that could be changed.
                Err(_) if state.path.is_systemd() && self.present_or_planned(state)?.is_none() => None,
                made => Some(made?),
            };
            state.device_program = cgroup.filter_id();
        }
        let (changed, tried) = match made {
            Some(made) => made,
            // Everything is planned once more.
            None => {
                let plan = planned.plan_anew(&self.host, state, options.unsupported)?;
                let tried = plan.writes().filter_map(|step| step.setting.clone()).collect();
                also()?;
                (plan.report, tried)
            }
        };
        let report = joined(std::mem::take(&mut planned.report), changed);
        state.report.supersede(&tried, &report);
        planned.keep_in(state);
        Ok(report)
    }
}

/// What a change leaves as the state.
pub(super) struct Changed {
    pub(super) resources: Resources,
    /// As in [`State`].
    pub(super) burst_asked: Option<u64>,
    /// Unless it stays as it was.
    pub(super) overhead_resources: Option<Resources>,
    pub(super) each: Option<EachThread>,
    /// What is to become different, as it lies on the whole and its parts.
    pub(super) shares: Shares<'static>,
    pub(super) parts: Vec<PartWant>,
    /// Unless nothing is said of them.
    pub(super) devices: Option<Devices>,
    pub(super) report: Report,
}

impl Changed {
    fn of(state: &State, change: &Resources, options: &ChangeOptions, host: &Host) -> Result<Self> {
        change.validate()?;
        let (change, burst_asked) = state.with_burst(change);
        let version =
            host.hierarchy_of(Controller::Memory).map_or(Version::V2, |(_, hierarchy)| hierarchy.version);
        let mut resources = state.resources.clone();
        resources.merge(&change, version);
        // A half that is given may contradict the half that stays.
        resources.validate()?;
        let mut overhead_resources = None;
        if !options.overhead.is_empty() {
            let resources = overhead_resources.insert(state.overhead_resources.clone());
            resources.merge(&options.overhead, version);
            state.overhead.allows(resources)?;
        }
        let mut each = None;
        if !options.each.is_empty() {
            let each = each.insert(state.each.clone());
            each.vcpu.merge(&options.each.vcpu, version);
            each.iothread.merge(&options.each.iothread, version);
            state.overhead.allows_each(each)?;
        }
        let shares = state.shares_of(&change, &options.overhead, &options.each).into_owned();
        let parts = layout::changed_parts(state, &shares);
        if let Some(swap) = resources.memory.swap {
            swap_to_v2(resources.memory.limit.unwrap_or(Limit::Max), swap)?;
        }
        let (mut devices, mut report) = (None, options.unread.clone());
        if let (Some(asked), Some(burst)) = (burst_asked, change.cpu.burst) {
            let why = format!("{burst} µs as long as the quota is no higher: a burst above it is refused");
            report.add("cpu.burst", asked, why);
        }
        // Applied once more, a leading "deny all" would be reported for each claim and follow what the host has today. A list
        // without it may be one rule that was refused because of a claim, and is asked for again.
        let is_whole_list = change.devices.iter().any(|rule| rule.kind == RuleKind::All);
        if is_whole_list && state.has_device_rules(&change.devices) {
            resources.devices.clone_from(&state.resources.devices);
        } else if !change.devices.is_empty() {
            DeviceRule::drop_superseded(&mut resources.devices);
            let base = || base_rules(state.profile, host).map(|(base, _)| base);
            let (changed, about) =
                Devices::of(state).changed(&change.devices, base, &state.profile.required(host))?;
            devices = Some(changed);
            report = joined(report, about);
        }
        Ok(Self { resources, burst_asked, overhead_resources, each, shares, parts, devices, report })
    }

    /// Of what may be opened, and of nothing else.
    pub(super) fn of_devices(state: &State, devices: Devices, report: Report) -> Self {
        let (resources, devices) = (state.resources.clone(), Some(devices));
        let (overhead_resources, each, shares, parts) = Default::default();
        let burst_asked = state.burst_asked;
        Self { resources, burst_asked, overhead_resources, each, shares, parts, devices, report }
    }

    /// All of it, in a unit that is yet to be started.
    fn plan_anew(&self, host: &Host, state: &State, unsupported: Unsupported) -> Result<Plan> {
        let mut then = state.clone();
        then.resources = self.resources.clone();
        then.overhead_resources = self.overhead_resources.clone().unwrap_or(then.overhead_resources);
        then.each = self.each.clone().unwrap_or(then.each);
        then.devices = self.devices.as_ref().map_or(then.devices, |devices| devices.policy.clone());
        let anew = then.anew();
        plan::plan(host, &Want { unsupported, ..then.want(&anew) }, plan::UNREAD)
    }

    fn keep_in(self, state: &mut State) {
        state.resources = self.resources;
        state.burst_asked = self.burst_asked;
        if let Some(overhead_resources) = self.overhead_resources {
            state.overhead_resources = overhead_resources;
        }
        if let Some(each) = self.each {
            state.each = each;
        }
        if let Some(devices) = self.devices {
            devices.keep_in(state);
        }
    }

    fn want<'a>(&'a self, state: &'a State, before: &'a Anew<'_>, options: &ChangeOptions) -> Want<'a> {
        let mut want = Want::change(&state.cgroup, &before.whole, &self.shares.whole);
        want.parts = &self.parts;
        want.unit = state.unit(before);
        want.burst_by_default = state.burst_by_default;
        want.oom_group_by_default = state.profile != Profile::None;
        want.force = options.force;
        want.unsupported = options.unsupported;
        want.devices_now = Some(&state.devices);
        if let Some(devices) = &self.devices {
            let overriding = Override::from_allowed(state.override_device_programs);
            let (before, policy) = (Some(&state.devices), &devices.policy);
            want.devices = Some(DeviceWant { before, policy, overriding });
        }
        want
    }
}

impl State {
    /// Adds to a change of the quota the burst that the caller asked for before, lowered to what the new quota allows. Also
    /// returns the burst that was asked for, if it is lowered.
    fn with_burst<'c>(&self, change: &'c Resources) -> (Cow<'c, Resources>, Option<u64>) {
        let (named, _) = change.with_named_fields();
        let named = &named.cpu;
        let asked = self.burst_asked.or(self.resources.cpu.burst);
        let (Some(quota), None, Some(asked)) = (named.quota, named.burst, asked) else {
            return (Cow::Borrowed(change), self.burst_asked.filter(|_| named.burst.is_none()));
        };
        let fits = match quota {
            Limit::Max => asked,
            Limit::Value(quota) => asked.min(most_burst(quota)),
        };
        let mut change = Cow::Borrowed(change);
        if self.resources.cpu.burst != Some(fits) {
            change.to_mut().cpu.burst = Some(fits);
        }
        (change, (fits < asked).then_some(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;

    fn state(rules: &[DeviceRule]) -> State {
        let mut state: State = serde_json::from_str(include_str!("state-1.json")).unwrap();
        state.resources.devices = rules.to_vec();
        let gpu = DeviceRule::parse(true, "c 243:0 rw", |_| unreachable!()).unwrap();
        state.claims.insert("gpu".to_owned(), vec![gpu]);
        state
    }

    fn rules() -> Vec<DeviceRule> {
        let json = r#"{"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"},
            {"allow": false, "type": "c", "major": 1, "minor": 5, "access": "rwm"}
        ]}"#;
        Resources::from_oci_json(json).unwrap().0.devices
    }

    #[test]
    fn the_device_list_that_is_in_force_is_no_change() {
        for mode in [Mode::V1, Mode::Hybrid, Mode::V2] {
            let (state, host) = (state(&rules()), Host::standard(mode, false));
            let change = Resources::new().devices(rules()).pids_limit(9);
            let changed = Changed::of(&state, &change, &ChangeOptions::default(), &host).unwrap();
            assert!(changed.devices.is_none() && changed.report.is_empty(), "{:?}", changed.report);
            assert_eq!(changed.resources, state.resources.clone().pids_limit(9));
        }
    }

    #[test]
    fn another_device_list_is_a_change() {
        let host = Host::standard(Mode::V2, false);
        for other in [&rules()[..2], &rules()[..1]] {
            let (state, change) = (state(&rules()), Resources::new().devices(other.to_vec()));
            let changed = Changed::of(&state, &change, &ChangeOptions::default(), &host).unwrap();
            assert!(changed.devices.is_some() && !changed.report.is_empty(), "the claim stays, and is told");
        }
        assert!(!state(&[]).has_device_rules(&[]), "nothing is said of devices");
    }
}
