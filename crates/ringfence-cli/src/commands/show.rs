//! `show`: one sandbox whole.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use clap::Args;
use ringfence::terminal::Escaped;
use ringfence::{
    DevicePolicy, DeviceRule, Mode, Part, Phase, Pin, ProcessIdentity, Report, Resources, Result, Sandbox,
    SandboxId, State, Status, unless_gone,
};
use serde::Serialize;

use crate::commands::classify::pins;
use crate::context::{Context, alive};
use crate::exit::Exit;

/// Show one sandbox: its state, cgroups, limits, devices, and what could not be done
#[derive(Debug, Args)]
pub struct Show {
    /// Name of the sandbox
    id: SandboxId,
}

impl Show {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let state = context.state(&host, &self.id)?;
        let shown = Shown::of(&self.id, &state, alive(&host, &state)?.as_ref())?;
        context.output.object(&shown, &shown)?;
        Ok(Exit::Done)
    }
}

/// What is shown of a sandbox.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    id: &'a SandboxId,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    driver: &'static str,
    host: ShownHost,
    state: Status,
    #[serde(skip_serializing_if = "is_ready")]
    phase: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<Holder>,
    paths: BTreeMap<String, PathBuf>,
    parts: BTreeMap<Part, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pin: Option<Pin>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pinned: &'a BTreeMap<u32, u32>,
    resources: &'a Resources,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead: Option<ShownOverhead<'a>>,
    devices: &'a DevicePolicy,
    claims: &'a BTreeMap<String, Vec<DeviceRule>>,
    report: Report,
}

/// A separate overhead.
#[derive(Debug, Serialize)]
struct ShownOverhead<'a> {
    path: String,
    state: Status,
    paths: BTreeMap<String, PathBuf>,
    resources: &'a Resources,
}

#[derive(Debug, Serialize)]
struct ShownHost {
    mode: Mode,
}

#[derive(Debug, Serialize)]
struct Holder {
    pid: u32,
    alive: bool,
}

impl From<&ProcessIdentity> for Holder {
    fn from(holder: &ProcessIdentity) -> Self {
        Self { pid: holder.pid, alive: holder.is_alive() }
    }
}

impl<'a> Shown<'a> {
    /// `sandbox` is `None` where the cgroup is gone.
    pub fn of(id: &'a SandboxId, state: &'a State, sandbox: Option<&Sandbox>) -> Result<Self> {
        Ok(Self {
            id,
            path: path(state),
            driver: driver(state),
            host: ShownHost { mode: state.mode },
            state: status(sandbox)?,
            phase: state.phase,
            holder: state.holder.as_ref().map(Holder::from),
            paths: sandbox.map(Sandbox::paths).unwrap_or_default(),
            parts: state.part_paths(),
            pin: state.pin,
            pinned: &state.pinned,
            resources: &state.resources,
            overhead: state.apart.as_ref().map(|apart| ShownOverhead::of(apart, sandbox)).transpose()?,
            devices: &state.devices,
            claims: &state.claims,
            report: state.full_report(),
        })
    }
}

impl<'a> ShownOverhead<'a> {
    fn of(apart: &'a State, sandbox: Option<&Sandbox>) -> Result<Self> {
        let overhead = sandbox.and_then(Sandbox::overhead);
        Ok(Self {
            path: format!("/{}", apart.cgroup),
            state: status(overhead)?,
            paths: overhead.map(Sandbox::paths).unwrap_or_default(),
            resources: &apart.resources,
        })
    }
}

/// A phase is only worth a word where something was interrupted.
fn is_ready(phase: &Phase) -> bool {
    *phase == Phase::Ready
}

/// Who made the cgroup.
pub fn driver(state: &State) -> &'static str {
    if state.path.is_systemd() { "systemd" } else { "cgroupfs" }
}

/// The path of the cgroup below the root of each hierarchy; none for a sandbox without one.
pub fn path(state: &State) -> Option<String> {
    (!state.cgroup.is_empty()).then(|| format!("/{}", state.cgroup))
}

pub fn status(sandbox: Option<&Sandbox>) -> Result<Status> {
    let status = sandbox.map(|sandbox| unless_gone(sandbox.status())).transpose()?;
    Ok(status.flatten().unwrap_or(Status::Gone))
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10}{}", "id", self.id)?;
        let path = self.path.as_deref().unwrap_or("-");
        writeln!(f, "{:<10}{} ({}, {})", "path", Escaped(path), self.driver, self.host.mode.as_str())?;
        writeln!(f, "{:<10}{}", "state", self.state)?;
        if let Some(Holder { pid, alive }) = self.holder {
            writeln!(f, "{:<10}{pid}{}", "holder", if alive { "" } else { " (dead)" })?;
        }
        for (number, (controller, directory)) in self.paths.iter().enumerate() {
            let heading = if number == 0 { "cgroups" } else { "" };
            writeln!(f, "{heading:<10}{controller:<13} {}", Escaped(&directory.to_string_lossy()))?;
        }
        for (part, path) in &self.parts {
            writeln!(f, "{:<10}{part:<13} /{}", "part", Escaped(path))?;
        }
        if let Some(pin) = self.pin {
            let pins = if self.pinned.is_empty() { "none is pinned".to_owned() } else { pins(self.pinned) };
            writeln!(f, "{:<10}{pin}: {pins}", "pin")?;
        }
        let limits = self.resources.to_oci_json().map_err(|_| fmt::Error)?;
        writeln!(f, "{:<10}{limits}", "asked for")?;
        if let Some(overhead) = &self.overhead {
            let limits = overhead.resources.to_oci_json().map_err(|_| fmt::Error)?;
            writeln!(f, "{:<10}{limits} of the overhead, which is {}", "", overhead.state)?;
        }
        writeln!(f, "{:<10}{}", "devices", self.devices)?;
        for line in self.report.lines() {
            writeln!(f, "{:<10}{line}", "report")?;
        }
        Ok(())
    }
}
