//! The command `ringfence`: sandboxes for virtual machines, from the command line.
//!
//! No logic of its own: every subcommand is a few lines over the library.

mod commands;
mod context;
mod exit;
mod limits;
mod output;
mod supervise;

use std::error::Error as _;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind as UsageKind;
use clap::{Parser, Subcommand};
use ringfence::terminal::EscapedLines;
use ringfence::{Error, ErrorKind, Result};

use context::{Context, Global};
use exit::Exit;
use output::{Color, Format, Output};

const EXAMPLES: &str = "\
Examples:
  Run a virtual machine in half a CPU and 512 MiB, with the devices that QEMU opens:
    ringfence run vm1 --cpus 0.5 --memory 512M --profile qemu -- qemu-system-x86_64 …
  Make a sandbox, look at it, start something inside, give it more, remove it:
    ringfence create vm2 --memory 1G --pids 100
    ringfence show vm2
    ringfence exec vm2 -- /bin/sh
    ringfence set vm2 --memory 2G
    ringfence rm vm2 --kill
  See what would be done on a host with cgroup v2, without doing it, without root:
    ringfence plan vm3 --memory 1G --host v2
  See what happens in all sandboxes, as lines of JSON:
    ringfence watch -o jsonl
  See whether this host is ready, and what to do about what is not:
    ringfence doctor

Exit status:
  0 done; 1 failed; 2 wrong usage or bad input; 3 no such sandbox; 4 differs (diff), denied (devices
  check); 5 exists, busy or locked. run and exec: the command's own, 128+signal if it was killed;
  125 when ringfence failed, 126 if the command cannot be executed, 127 if it is not found.
  Bad input is 2 here too.

Environment:
  RINGFENCE_OUTPUT, RINGFENCE_DRIVER, RINGFENCE_CGROUP_ROOT, RINGFENCE_STATE_DIR, RINGFENCE_TIMEOUT,
  RINGFENCE_STRICT, RINGFENCE_QUIET, RINGFENCE_COLOR: the options of these names.";

/// Put every process of a virtual machine into cgroups, with exactly the devices and resources it may have
///
/// A sandbox is one virtual machine with everything on the host that serves it, named by an ID (letters, digits, `_.-`).
/// cgroup v1, v2, and both beside each other.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, after_help = EXAMPLES)]
struct CommandLine {
    #[command(flatten)]
    global: Global,

    #[command(subcommand)]
    subcommand: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(commands::create::Create),
    Run(commands::run::Run),
    Exec(commands::exec::Exec),
    Attach(commands::attach::Attach),
    Classify(commands::classify::Classify),
    #[command(visible_alias = "update")]
    Set(commands::set::Set),
    Ls(commands::ls::Ls),
    Show(commands::show::Show),
    Ps(commands::ps::Ps),
    Stats(commands::stats::Stats),
    Watch(commands::watch::Watch),
    Devices(commands::devices::Devices),
    #[command(visible_alias = "pause")]
    Freeze(commands::freeze::Freeze),
    #[command(visible_alias = "resume")]
    Thaw(commands::freeze::Thaw),
    Kill(commands::kill::Kill),
    Repair(commands::repair::Repair),
    Rm(commands::rm::Rm),
    Gc(commands::gc::Gc),
    Plan(commands::plan::Plan),
    Diff(commands::diff::Diff),
    Convert(commands::convert::Convert),
    Explain(commands::explain::Explain),
    Doctor(commands::doctor::Doctor),
    Features(commands::features::Features),
    #[command(hide = true)]
    Hold(commands::hold::Hold),
    #[command(hide = true)]
    PlaceVcpus(commands::place_vcpus::PlaceVcpus),
}

impl Command {
    fn run(&self, context: &Context) -> Result<Exit> {
        match self {
            Self::Create(create) => create.run(context),
            Self::Run(run) => run.run(context),
            Self::Exec(exec) => exec.run(context),
            Self::Attach(attach) => attach.run(context),
            Self::Classify(classify) => classify.run(context),
            Self::Set(set) => set.run(context),
            Self::Ls(ls) => ls.run(context),
            Self::Show(show) => show.run(context),
            Self::Ps(ps) => ps.run(context),
            Self::Stats(stats) => stats.run(context),
            Self::Watch(watch) => watch.run(context),
            Self::Devices(devices) => devices.run(context),
            Self::Freeze(freeze) => freeze.run(context),
            Self::Thaw(thaw) => thaw.run(context),
            Self::Kill(kill) => kill.run(context),
            Self::Repair(repair) => repair.run(context),
            Self::Rm(rm) => rm.run(context),
            Self::Gc(gc) => gc.run(context),
            Self::Plan(plan) => plan.run(context),
            Self::Diff(diff) => diff.run(context),
            Self::Convert(convert) => convert.run(context),
            Self::Explain(explain) => explain.run(context),
            Self::Doctor(doctor) => doctor.run(context),
            Self::Features(features) => features.run(context),
            Self::Hold(hold) => hold.run(),
            Self::PlaceVcpus(place) => place.run(context),
        }
    }

    /// How long the whole command may wait for systemd; `None` for one that waits for something else, and limits what it asks
    /// by itself.
    fn systemd_timeout(&self, context: &Context) -> Option<Duration> {
        let waits = matches!(self, Self::Run(_) | Self::Exec(_) | Self::PlaceVcpus(_));
        (!waits).then_some(context.global.timeout)
    }

    /// The exit code of an error.
    fn exit(&self, error: &Error) -> Exit {
        match self {
            Self::Run(_) | Self::Exec(_) => Exit::of_not_run(error),
            _ => Exit::of(error),
        }
    }
}

fn main() -> ExitCode {
    // A parent that ignores SIGCHLD hands that down.
    ringfence::stop_ignoring_children();
    let CommandLine { global, subcommand } = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return refuse(&error).into(),
    };
    let context = Context::new(global);
    let _limit = subcommand.systemd_timeout(&context).map(ringfence::limit_systemd);
    let exit = subcommand.run(&context).unwrap_or_else(|error| {
        context.output.error(&error);
        subcommand.exit(&error)
    });
    exit.into()
}

/// Says what is wrong with the command line, in the words of the library where it refused a value; or prints the help
/// that was asked for.
fn refuse(error: &clap::Error) -> Exit {
    // A closed pipe is no error, and nobody is left to be told that stderr is closed.
    if !error.use_stderr() {
        _ = error.print();
        return Exit::Done;
    }
    let known = error.source().and_then(|source| source.downcast_ref::<Error>());
    match (known, wants_json(std::env::args_os())) {
        // Without colours: clap's own escape sequences could not be told from those of an argument.
        (None, false) => _ = write!(io::stderr(), "{}", EscapedLines(&error.render().to_string())),
        (Some(known), json) => printer(json).error(known),
        (None, true) => printer(true).error(&Error::new(ErrorKind::InvalidInput, sentence(error))),
    }
    Exit::Usage
}

fn printer(json: bool) -> Output {
    Output::new(Some(if json { Format::Json } else { Format::Table }), Color::Auto)
}

/// The first paragraph of what clap would print, on one line.
fn sentence(error: &clap::Error) -> String {
    if error.kind() == UsageKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a subcommand is needed: see `ringfence --help`".to_owned();
    }
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = paragraph.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

/// Whether errors are to be JSON, told from a command line that cannot be parsed.
fn wants_json(args: impl Iterator<Item = OsString>) -> bool {
    let mut format = std::env::var("RINGFENCE_OUTPUT").ok();
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned()).take_while(|arg| arg != "--");
    while let Some(arg) = args.next() {
        // Of the short options that can stand before it (`-qo json`), none takes a value.
        let short = arg.strip_prefix('-').map(|letters| letters.trim_start_matches(['q', 'v']));
        let glued = arg.strip_prefix("--output=").or_else(|| short?.strip_prefix('o'));
        match (glued, arg.as_str()) {
            (Some(""), _) | (None, "--output") => format = args.next(),
            (Some(value), _) => format = Some(value.trim_start_matches('=').to_owned()),
            _ => {}
        }
    }
    matches!(format.as_deref(), Some("json" | "jsonl"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_of_all_subcommands_fit_together() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_line_of_help() {
        fn look(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(look);
        }
        look(&CommandLine::command());
    }

    #[test]
    fn command_lines_of_the_contract_are_taken_and_others_are_not() {
        let parses = |line: &str| CommandLine::try_parse_from(line.split(' ')).is_ok();
        for line in [
            "ringfence create a --memory 1G --cpus 0.5 --profile qemu --strict",
            "ringfence -o json create a --path /x/y --overhead together",
            "ringfence create a --overhead nested --overhead-cpus 0.5",
            "ringfence set a --cpus-per-vcpu 0.5 --cpus-per-iothread max",
            "ringfence exec a --part overhead -- ls",
            "ringfence attach a --thread --part vcpu 1 2",
            "ringfence create a --pin --cpuset-cpus 0-1",
            "ringfence run a --pin=exclusive -- sleep 1",
            "ringfence set a --pin=none",
            "ringfence classify a --vcpus 2 --qmp /run/qmp.sock",
            "ringfence run a --vmm vcpu{} --vcpus 2 -- sleep 1",
            "ringfence run a --keep -- sleep 1",
            "ringfence run --detach a -- sleep 1 --memory x",
            "ringfence run a --detach --wait-vcpus 0.5 -- sleep 1",
            "ringfence exec a -- ls -l",
            "ringfence attach a 1 2",
            "ringfence update a --pids max",
            "ringfence ls -o jsonl",
            "ringfence stats --interval 0.5",
            "ringfence watch",
            "ringfence watch a b --pressure memory:some:100ms/1s --pressure io:full:1s/2s -o json",
            "ringfence devices check --profile none /dev/null:r",
            "ringfence pause a",
            "ringfence resume a",
            "ringfence kill a --signal TERM",
            "ringfence rm a --drain",
            "ringfence gc --apply --kill",
            "ringfence plan a --host v2+systemd --memory 1G",
            "ringfence -o json diff a",
            "ringfence convert --from v1 --to v2 -",
            "ringfence explain a hugetlb.2MB.max",
            "ringfence explain a cpu.max --part overhead",
            "ringfence doctor --strict -o jsonl",
        ] {
            assert!(parses(line), "{line}");
        }
        for line in [
            "ringfence",
            "ringfence create",
            "ringfence create a/b",
            "ringfence run a",
            "ringfence run a sleep 1",
            "ringfence run a --keep --detach -- sleep 1",
            "ringfence run a --wait-vcpus 5 -- sleep 1",
            "ringfence attach a",
            "ringfence rm a --kill --drain",
            "ringfence create a --overhead nowhere",
            "ringfence create a --pin=none",
            "ringfence set a --pin=all",
            "ringfence classify a --vcpus 0",
            "ringfence classify a --vmm vcpu",
            "ringfence ls --timeout -1",
            "ringfence explain a",
            "ringfence watch a --pressure memory:some:100ms",
            "ringfence explain a memory.nonsense",
            "ringfence devices check --id a --profile none /dev/null",
        ] {
            assert!(!parses(line), "{line}");
        }
    }

    #[test]
    fn the_form_of_errors_is_known_even_where_the_command_line_is_wrong() {
        let wants = |line: &str| wants_json(line.split(' ').map(OsString::from));
        for line in [
            "x -o json",
            "x -ojson",
            "x --output=jsonl",
            "x --output json",
            "x -o table -o json",
            "x -qo json",
            "x -vvojson",
        ] {
            assert!(wants(line), "{line}");
        }
        for line in ["x", "x -o", "x -o table", "x run a -- -o json"] {
            assert!(!wants(line), "{line}");
        }
    }
}
