//! Changing a sandbox: what it leaves as the state, and what is planned for it.

use std::collections::BTreeSet;

use super::begun::{Ahead, UNRECORDED};
use super::claims::Devices;
use super::layout::{self, EachThread, Shares};
use super::state::Anew;
use super::{Pin, Sandbox, State, base_rules, joined};
use crate::devices::DeviceRule;
use crate::devices::filter::Override;
use crate::driver::dirs::Dirs;
use crate::driver::observe::plan_on;
use crate::error::Result;
use crate::host::{Controller, Host, Version};
use crate::plan::convert::swap_to_v2;
use crate::plan::{self, DeviceWant, Observed, PartWant, Plan, Unsupported, Want};
use crate::report::Report;
use crate::resources::{Limit, Resources};

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
        let state = self.locked();
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
                let anew = state.anew();
                let want = planned.want(state, &anew, options);
                plan_on(&self.host, &mut Dirs::new(&self.host, cgroup.dirs.clone()), &want)?
            }
            None => planned.plan_anew(&self.host, state, options.unsupported)?,
        };
        plan.report = joined(planned.report, plan.report);
        Ok(plan)
    }

    /// Changes limits: merges, all or nothing. Device rules are taken after those from before.
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
        planned: Changed,
        options: &ChangeOptions,
        ahead: Ahead<'_>,
        also: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Report> {
        options.unsupported.mind(&planned.report)?;
        let (changed, tried) = match self.present_or_planned(state)? {
            Some(cgroup) => {
                let anew = state.anew();
                let made = cgroup.change_and(&planned.want(state, &anew, options), ahead, also)?;
                state.device_program = cgroup.filter_id();
                made
            }
            // Everything is planned once more.
            None => {
                let plan = planned.plan_anew(&self.host, state, options.unsupported)?;
                let tried = plan.writes().filter_map(|step| step.setting.clone()).collect();
                also()?;
                (plan.report, tried)
            }
        };
        let report = joined(planned.report, changed);
        state.report.supersede(&tried, &report);
        state.resources = planned.resources;
        state.overhead_resources = planned.overhead_resources;
        state.each = planned.each;
        planned.devices.keep_in(state);
        Ok(report)
    }
}

/// What a change leaves as the state.
pub(super) struct Changed {
    pub(super) resources: Resources,
    pub(super) overhead_resources: Resources,
    pub(super) each: EachThread,
    /// What is to become different, as it lies on the whole and its parts.
    pub(super) shares: Shares,
    pub(super) parts: Vec<PartWant>,
    pub(super) devices: Devices,
    pub(super) report: Report,
}

impl Changed {
    fn of(state: &State, change: &Resources, options: &ChangeOptions, host: &Host) -> Result<Self> {
        change.validate()?;
        let version =
            host.hierarchy_of(Controller::Memory).map_or(Version::V2, |(_, hierarchy)| hierarchy.version);
        let mut resources = state.resources.clone();
        resources.merge(change, version);
        // A half that is given may contradict the half that stays.
        resources.validate()?;
        let mut overhead_resources = state.overhead_resources.clone();
        overhead_resources.merge(&options.overhead, version);
        state.overhead.allows(&overhead_resources)?;
        let mut each = state.each.clone();
        each.vcpu.merge(&options.each.vcpu, version);
        each.iothread.merge(&options.each.iothread, version);
        state.overhead.allows_each(&each)?;
        let shares = state.shares_of(change, &options.overhead, &options.each);
        let parts = layout::parts(&state.parts, &state.shares(), &shares);
        if let Some(swap) = resources.memory.swap {
            swap_to_v2(resources.memory.limit.unwrap_or(Limit::Max), swap)?;
        }
        let unread = options.unread.clone();
        if change.devices.is_empty() {
            let devices = Devices::of(state);
            return Ok(Self { resources, overhead_resources, each, shares, parts, devices, report: unread });
        }
        DeviceRule::drop_superseded(&mut resources.devices);
        let base = || base_rules(state.profile, host).map(|(base, _)| base);
        let (devices, report) =
            Devices::of(state).changed(&change.devices, base, &state.profile.required(host))?;
        let report = joined(unread, report);
        Ok(Self { resources, overhead_resources, each, shares, parts, devices, report })
    }

    /// Of what may be opened, and of nothing else.
    pub(super) fn of_devices(state: &State, devices: Devices, report: Report) -> Self {
        let (resources, overhead_resources) = (state.resources.clone(), state.overhead_resources.clone());
        let (each, (shares, parts)) = (state.each.clone(), Default::default());
        Self { resources, overhead_resources, each, shares, parts, devices, report }
    }

    /// All of it, in a unit that is yet to be started.
    fn plan_anew(&self, host: &Host, state: &State, unsupported: Unsupported) -> Result<Plan> {
        let (resources, devices) = (self.resources.clone(), self.devices.policy.clone());
        let (overhead_resources, each) = (self.overhead_resources.clone(), self.each.clone());
        let then = State { resources, overhead_resources, each, devices, ..state.clone() };
        let anew = then.anew();
        plan::plan(host, &Want { unsupported, ..then.want(&anew) }, &Observed::default())
    }

    fn want<'a>(&'a self, state: &'a State, anew: &'a Anew, options: &ChangeOptions) -> Want<'a> {
        let mut want = Want::change(&state.cgroup, &anew.shares.whole, &self.shares.whole);
        want.parts = &self.parts;
        want.unit = state.unit(anew);
        want.burst_by_default = state.burst_by_default;
        want.force = options.force;
        want.unsupported = options.unsupported;
        if self.devices.are_changed {
            let overriding = Override::from_allowed(state.override_device_programs);
            let (before, policy) = (Some(&state.devices), &self.devices.policy);
            want.devices = Some(DeviceWant { before, policy, overriding });
        }
        want
    }
}
