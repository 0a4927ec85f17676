//! Ringfence.

use std::time::Duration;

use ringfence::{Command, DeviceRule, Host, Profile, Remaining, Resources, Sandbox, SandboxConfig};

use super::{MAJOR, MEMORY, Manager, PIDS, Program, QUOTA, RULES};
use crate::Result;

pub struct Ours {
    host: Host,
    pub sandbox: Option<Sandbox>,
}

impl Ours {
    pub fn new(host: &Host) -> Self {
        Self { host: host.clone(), sandbox: None }
    }

    pub fn config(name: &str) -> Result<SandboxConfig> {
        let rules = (0..RULES).map(rule).collect::<Result<Vec<_>>>()?;
        let limits = Resources::new().cpu_quota(QUOTA).memory_limit(MEMORY).pids_limit(PIDS).devices(rules);
        // What a profile adds, others have not.
        Ok(SandboxConfig::new(format!("/{name}").parse()?).resources(limits).profile(Profile::None))
    }

    fn sandbox(&self) -> Result<&Sandbox> {
        self.sandbox.as_ref().ok_or_else(|| "there is no sandbox".into())
    }
}

fn rule(minor: u32) -> Result<DeviceRule> {
    let text = format!("b {MAJOR}:{minor} rw");
    Ok(DeviceRule::parse(true, &text, |path| ringfence::DeviceNode::at(path))?)
}

impl Manager for Ours {
    fn create(&mut self, name: &str, pid: u32) -> Result<()> {
        let (sandbox, _) = Sandbox::create(&self.host, &Self::config(name)?)?;
        sandbox.join(pid)?;
        self.sandbox = Some(sandbox);
        Ok(())
    }

    fn spawn(&mut self, program: &Program) -> Result<()> {
        let status = self.sandbox()?.spawn(&Command::new(&program.path).env([]))?.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the program ended with {status}").into()) }
    }

    fn set(&mut self, pids: u64) -> Result<()> {
        self.sandbox()?.change(&Resources::new().pids_limit(pids))?;
        Ok(())
    }

    fn allow(&mut self, minor: u32) -> Result<()> {
        self.sandbox()?.change(&Resources::new().device(rule(minor)?))?;
        Ok(())
    }

    fn destroy(&mut self) -> Result<()> {
        self.sandbox()?.destroy(Remaining::Refuse, Duration::from_secs(5))?;
        self.sandbox = None;
        Ok(())
    }
}
