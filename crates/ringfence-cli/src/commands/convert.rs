//! `convert`: limits from one form into another.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ringfence::resources::SpecFile;
use ringfence::{Report, Resources, Result};

use crate::context::Context;
use crate::exit::Exit;
use crate::limits::{in_file, read};

/// Convert limits into the files of cgroup v2; what v2 cannot do is told on stderr
///
/// The JSON is an OCI LinuxResources object with all of it in `unified`, as --resources takes it. Nothing is asked of this
/// machine.
#[derive(Debug, Args)]
pub struct Convert {
    /// What FILE is: oci (a LinuxResources object, or a whole config.json), or v1 (lines of FILE VALUE, as in
    /// `grep -s . /sys/fs/cgroup/*/vm1/*`, or a JSON object of files)
    #[arg(long, value_name = "FORM", hide_possible_values = true)]
    from: From,

    /// What it is to become: v2
    #[arg(long, value_name = "FORM", hide_possible_values = true)]
    to: To,

    /// What to convert; - is standard input
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    Oci,
    V1,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    V2,
}

impl Convert {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let text = read(&self.file)?;
        let given = match self.from {
            From::Oci => oci(&text),
            From::V1 => Resources::from_v1_files(&text),
        };
        let (resources, mut report) = given.map_err(|error| in_file(error, &self.file))?;
        let (converted, lost) = match self.to {
            To::V2 => resources.to_v2()?,
        };
        report.append(lost);
        context.unsupported().mind(&report)?;
        context.output.report_always(&report);
        context.output.object(&converted, Converted(&converted))?;
        Ok(Exit::Done)
    }
}

/// A configuration is known by its `linux` section.
fn oci(text: &str) -> Result<(Resources, Report)> {
    let whole = serde_json::from_str::<serde_json::Value>(text).ok();
    if whole.is_some_and(|whole| whole.get("linux").is_some()) {
        return SpecFile::from_oci_json(text).map(|(spec, report)| (spec.resources, report));
    }
    Resources::from_oci_json(text)
}

/// For people: a line for each value.
struct Converted<'a>(&'a Resources);

impl fmt::Display for Converted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(resources) = self;
        for (file, value) in &resources.unified {
            for line in value.lines() {
                writeln!(f, "{file} = {line}")?;
            }
        }
        for rule in &resources.devices {
            writeln!(f, "devices {} {rule}", if rule.allow { "allow" } else { "deny" })?;
        }
        Ok(())
    }
}
