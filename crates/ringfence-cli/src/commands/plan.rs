//! `plan`: the steps, without taking them.

use clap::Args;
use ringfence::{ChangeOptions, Error, Host, Mode, Plan as Steps, Result, Sandbox, SandboxId, State};

use crate::commands::set;
use crate::context::{Context, Driver};
use crate::exit::Exit;
use crate::limits::{Wanted, node_of, node_on, read};

/// Print the ordered steps that a creation would take, or a change of a sandbox that exists; takes none
///
/// With --host it is always a creation, on that host, and nothing is asked of this machine.
#[derive(Debug, Args)]
pub struct Plan {
    /// Name of a sandbox, new or not
    id: SandboxId,

    /// Plan for another host: v1, hybrid or v2, with +systemd behind; or a FILE with the output of `ringfence features`
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    #[command(flatten)]
    wanted: Wanted,
}

impl Plan {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let plan = match &self.host {
            Some(name) => {
                let host = other_host(name)?;
                let by_systemd = host.systemd && context.global.driver != Driver::Cgroupfs
                    || context.global.driver == Driver::Systemd;
                Sandbox::plan(&host, &self.wanted.config(context, &self.id, by_systemd, node_of(&host))?)?
            }
            None => {
                let host = context.host()?;
                match context.store(&host).load(&self.id)? {
                    Some(state) => self.change(context, &host, state)?,
                    None => {
                        let by_systemd = context.by_systemd(&host);
                        let config = self.wanted.config(context, &self.id, by_systemd, node_on(&host))?;
                        Sandbox::plan_here(&host, &config)?
                    }
                }
            }
        };
        context.output.object(&plan, &plan)?;
        Ok(Exit::Done)
    }

    fn change(&self, context: &Context, host: &Host, state: State) -> Result<Steps> {
        let Wanted { creation, spec, limits, devices } = &self.wanted;
        if let Some(option) = creation.given().or(spec.is_some().then_some("--spec")) {
            let why = format!(
                "there is such a sandbox already, and {option} is for a new one; --host plans a new one"
            );
            return Err(Error::invalid("id", &self.id, why));
        }
        let (mut change, unread) = set::change(limits)?;
        set::keeps_devices(&change, &state)?;
        change.devices = devices.rules(node_on(host))?;
        Sandbox::restore(host, state)?.plan_change(
            &change,
            ChangeOptions {
                overhead: limits.overhead(),
                each: limits.each(),
                ..set::options(context, unread)
            },
        )
    }
}

fn other_host(name: &str) -> Result<Host> {
    let (mode, systemd) = name.strip_suffix("+systemd").map_or((name, false), |mode| (mode, true));
    let mode = [Mode::V1, Mode::Hybrid, Mode::V2].into_iter().find(|known| known.as_str() == mode);
    if let Some(mode) = mode {
        return Ok(Host::standard(mode, systemd));
    }
    let text = read(name.as_ref()).map_err(|error| {
        let why =
            format!("neither v1, hybrid or v2, with +systemd behind or not, nor a file: {}", error.message());
        error.with_setting("host").with_message(why)
    })?;
    Host::from_json(&text)
}
