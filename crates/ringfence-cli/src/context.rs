//! The global options, and what every subcommand begins with.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, ValueEnum};
use ringfence::{
    Entry, Error, ErrorKind, Host, Plan, Result, Sandbox, SandboxId, State, Store, Unsupported, unless_gone,
};

use crate::exit::Exit;
use crate::output::{Color, Format, Output};

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// By the form of the path; without one, systemd where it is process 1 and can be reached.
    Auto,
    /// This command itself, in the cgroup file system.
    Cgroupfs,
    /// systemd.
    Systemd,
}

/// Options of every subcommand.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Form of results, and of errors on stderr: table, json, jsonl [default: table]
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        hide_possible_values = true,
        env = "RINGFENCE_OUTPUT",
        hide_env = true
    )]
    pub output: Option<Format>,

    /// Who makes the cgroups: auto (by the form of the path; without a path systemd where it is), cgroupfs, systemd
    #[arg(
        long,
        global = true,
        default_value = "auto",
        hide_possible_values = true,
        env = "RINGFENCE_DRIVER",
        hide_env = true
    )]
    pub driver: Driver,

    /// Where the cgroups are mounted [default: as /proc/self/mountinfo says]
    #[arg(long, global = true, value_name = "DIR", env = "RINGFENCE_CGROUP_ROOT", hide_env = true)]
    pub cgroup_root: Option<PathBuf>,

    /// Where the states of sandboxes are kept [default: /run/ringfence; rootless: $XDG_RUNTIME_DIR/ringfence]
    #[arg(long, global = true, value_name = "DIR", env = "RINGFENCE_STATE_DIR", hide_env = true)]
    pub state_dir: Option<PathBuf>,

    /// How long to wait for a lock, for freezing, for removal and for systemd; fractions are taken
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value = "10",
        value_parser = |text: &str| seconds("timeout", text),
        env = "RINGFENCE_TIMEOUT",
        hide_env = true
    )]
    pub timeout: Duration,

    /// What this host cannot do is an error, before anything is changed, instead of a line in the report
    #[arg(long, global = true, value_parser = FalseyValueParser::new(), env = "RINGFENCE_STRICT", hide_env = true)]
    pub strict: bool,

    /// Print results and errors alone: no report, no word about what was done
    #[arg(
        short,
        long,
        global = true,
        value_parser = FalseyValueParser::new(),
        env = "RINGFENCE_QUIET",
        hide_env = true
    )]
    pub quiet: bool,

    /// Print more on stderr: the steps of a change before they are taken, and what is only worth knowing
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// When to use colour: auto (on a terminal, unless NO_COLOR is set), always, never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        env = "RINGFENCE_COLOR",
        hide_env = true
    )]
    pub color: Color,
}

/// A time in seconds, with fractions.
pub fn seconds(setting: &'static str, text: &str) -> Result<Duration> {
    let number = text.parse::<f64>().ok();
    number
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| Error::invalid(setting, text, "takes a number of seconds, such as 0.5"))
}

/// What every subcommand is given.
#[derive(Debug)]
pub struct Context {
    pub global: Global,
    pub output: Output,
}

impl Context {
    pub fn new(global: Global) -> Self {
        let output = Output::new(global.output, global.color).telling(global.quiet, global.verbose > 0);
        Self { global, output }
    }

    /// This machine.
    pub fn host(&self) -> Result<Host> {
        match &self.global.cgroup_root {
            Some(root) => Host::detect_at(root),
            None => Host::detect(),
        }
    }

    /// Whether a sandbox for which no path is given is a unit of systemd on this machine.
    pub fn by_systemd(&self, host: &Host) -> bool {
        match self.global.driver {
            Driver::Auto => host.systemd_is_reachable(),
            Driver::Cgroupfs => false,
            Driver::Systemd => true,
        }
    }

    pub fn store(&self, host: &Host) -> Store {
        Store::new(self.global.state_dir.clone().unwrap_or_else(|| state_dir(host)))
    }

    pub fn unsupported(&self) -> Unsupported {
        if self.global.strict { Unsupported::Refuse } else { Unsupported::Report }
    }

    /// The state of a sandbox, as it was last written; without its lock.
    pub fn state(&self, host: &Host, id: &SandboxId) -> Result<State> {
        self.store(host).load(id)?.ok_or_else(|| no_such_sandbox(id))
    }

    /// A sandbox under its lock, whatever state it is in.
    pub fn lock(&self, host: &Host, id: &SandboxId) -> Result<(Entry, State)> {
        let entry = self.store(host).lock(id, self.global.timeout)?;
        let state = entry.load()?.ok_or_else(|| no_such_sandbox(id))?;
        Ok((entry, state))
    }

    /// A sandbox that is whole, under its lock; a change that was interrupted is taken back first.
    pub fn open(&self, host: &Host, id: &SandboxId) -> Result<(Entry, Sandbox)> {
        let (entry, state) = self.lock(host, id)?;
        if let Some(why) = state.phase.interrupted() {
            return Err(Error::new(ErrorKind::State, why).with_value(id));
        }
        let sandbox = Sandbox::restore(host, state)?;
        let settled = entry.settle(&sandbox)?;
        self.output.report(&settled);
        Ok((entry, sandbox))
    }

    /// Asks each sandbox that there is. One that cannot be read or changed does not keep the others: it is told on stderr,
    /// and makes the exit code.
    pub fn each<T>(
        &self,
        host: &Host,
        ask: impl Fn(&SandboxId) -> Result<Option<T>>,
    ) -> Result<(Vec<T>, Exit)> {
        let (mut answers, mut exit) = (Vec::new(), Exit::Done);
        for id in self.store(host).ids()? {
            match ask(&id) {
                Ok(answer) => answers.extend(answer),
                Err(error) => {
                    self.output.error(&error);
                    exit = Exit::Failed;
                }
            }
        }
        Ok((answers, exit))
    }

    /// Prints the steps that are about to be taken, where that is wanted.
    pub fn announce(&self, plan: impl FnOnce() -> Result<Plan>) -> Result<()> {
        if self.global.verbose > 0 {
            for step in plan()?.to_string().lines() {
                self.output.diagnostic(step);
            }
        }
        Ok(())
    }
}

pub fn no_such_sandbox(id: &SandboxId) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such sandbox").with_value(id)
}

/// The sandbox, unless its cgroup is gone.
pub fn alive(host: &Host, state: &State) -> Result<Option<Sandbox>> {
    unless_gone(Sandbox::restore(host, state.clone()))
}

fn state_dir(host: &Host) -> PathBuf {
    if !host.rootless {
        return PathBuf::from("/run/ringfence");
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    // Where pam_systemd would have put it.
    let runtime =
        runtime.map_or_else(|| format!("/run/user/{}", nix::unistd::geteuid()).into(), PathBuf::from);
    runtime.join("ringfence")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_seconds_that_is_not_negative() {
        assert_eq!(seconds("timeout", "0.25").unwrap(), Duration::from_millis(250));
        assert_eq!(seconds("timeout", "0").unwrap(), Duration::ZERO);
        for bad in ["", "-1", "inf", "NaN", "1e300", "1s"] {
            let error = seconds("timeout", bad).unwrap_err();
            assert_eq!((error.setting(), error.value()), (Some("timeout"), Some(bad)));
        }
    }
}
