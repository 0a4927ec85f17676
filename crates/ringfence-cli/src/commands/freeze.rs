//! `freeze` and `thaw`.

use clap::Args;
use ringfence::{Report, Result, SandboxId, Status};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;

/// Stop every task of a sandbox, and return when all have stopped
#[derive(Debug, Args)]
pub struct Freeze {
    /// Name of the sandbox
    id: SandboxId,
}

impl Freeze {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let (_entry, sandbox) = context.open(&context.host()?, &self.id)?;
        sandbox.freeze(context.global.timeout)?;
        let mut report = Report::default();
        // It is frozen, whether or not that can be seen.
        if let Ok(Some(ancestor)) = sandbox.frozen_ancestor() {
            report.add(
                "freeze",
                &self.id,
                format!("{ancestor} is frozen too: to let it run again, thaw both"),
            );
        }
        context.output.report(&report);
        context.output.done(&json!({"id": self.id, "state": Status::Frozen, "report": report}), "")?;
        Ok(Exit::Done)
    }
}

/// Let the tasks of a sandbox run again
#[derive(Debug, Args)]
pub struct Thaw {
    /// Name of the sandbox
    id: SandboxId,
}

impl Thaw {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let (_entry, sandbox) = context.open(&context.host()?, &self.id)?;
        let report = sandbox.thaw(context.global.timeout)?;
        context.unsupported().mind(&report)?;
        context.output.report(&report);
        // It is done, whether or not that can be seen.
        let state = sandbox.status().ok();
        context.output.done(&json!({"id": self.id, "state": state, "report": report}), "")?;
        Ok(Exit::Done)
    }
}
