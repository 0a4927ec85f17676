//! `kill`: a signal for all that runs inside.

use clap::Args;
use nix::sys::signal::Signal;
use ringfence::{Error, Report, Result, SandboxId};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::supervise::outlive_session;

/// Send a signal to every process of a sandbox; KILL until none is left
///
/// This command itself is spared where it runs inside.
#[derive(Debug, Args)]
pub struct Kill {
    /// Name of the sandbox
    id: SandboxId,

    /// Name (TERM, SIGTERM) or number of the signal
    #[arg(long, default_value = "KILL", value_parser = signal)]
    signal: i32,
}

fn signal(text: &str) -> Result<i32> {
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    let number = || text.parse().ok().filter(|number| *number > 0);
    name.parse::<Signal>().ok().map(|signal| signal as i32).or_else(number).ok_or_else(|| {
        Error::invalid("signal", text, "takes the name or the number of a signal, such as TERM or 15")
    })
}

impl Kill {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        outlive_session()?;
        let (_entry, sandbox) = context.open(&context.host()?, &self.id)?;
        let me = std::process::id();
        let mut report = Report::default();
        if sandbox.processes()?.contains(&me) {
            report.note("signal", self.signal, format!("this process (PID {me}) is inside and is spared"));
        }
        let pids = match self.signal {
            signal if signal == Signal::SIGKILL as i32 => sandbox.kill(context.global.timeout)?,
            signal => sandbox.signal(signal)?,
        };
        if let (false, Ok(Some(ancestor))) = (pids.is_empty(), sandbox.frozen_ancestor()) {
            let why = format!("{ancestor} is frozen: processes act on the signal when it is thawed");
            report.add("signal", self.signal, why);
        }
        context.output.report(&report);
        context
            .output
            .done(&json!({"id": self.id, "signal": self.signal, "pids": pids, "report": report}), "")?;
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_name_with_or_without_sig_or_a_number() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(text).unwrap(), 15, "{text}");
        }
        for bad in ["", "SIG", "NOSUCH", "-9", "0", "9.5"] {
            assert_eq!(signal(bad).unwrap_err().value(), Some(bad));
        }
    }
}
