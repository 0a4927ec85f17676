//! `doctor`: is this host ready.

use clap::Args;
use ringfence::Result;
use ringfence::doctor::{Facts, Finding, Verdict};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::Table;

/// Look whether this host is ready, and say what to do about what is not
///
/// Nothing is changed. /dev/kvm is tried by making a virtual machine without CPU and memory, the bus by connecting to
/// it. `good`: as it should be; `note`: worth knowing; `limited`: something that a sandbox may ask for cannot be done;
/// `unusable`: this caller can make no sandbox here.
///
/// Exit status: 1 where something is unusable, with --strict also where something is limited; else 0.
#[derive(Debug, Args)]
pub struct Doctor {}

impl Doctor {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let findings = Facts::read(context.global.cgroup_root.as_deref()).findings();
        context.output.list(&findings, || table(&findings))?;
        let bearable = if context.global.strict { Verdict::Note } else { Verdict::Limited };
        let is_ready = findings.iter().all(|finding| finding.verdict <= bearable);
        Ok(if is_ready { Exit::Done } else { Exit::Failed })
    }
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(["VERDICT", "CHECK", "FOUND, AND WHAT TO DO"]);
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Note => "note",
            Verdict::Limited => "limited",
            Verdict::Unusable => "unusable",
        };
        table.row([verdict.to_owned(), finding.check.to_owned(), finding.found.clone()]);
        if let Some(advice) = &finding.advice {
            table.row([String::new(), String::new(), format!("-> {advice}")]);
        }
    }
    table
}
