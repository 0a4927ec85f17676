//! `convert`: limits from one form into another.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ringfence::devices::DeviceKind;
use ringfence::resources::SpecFile;
use ringfence::terminal::Escaped;
use ringfence::{DeviceNode, DeviceNumber, Error, LibvirtDomain, Mode, Report, Resources, Result};

use crate::context::Context;
use crate::exit::Exit;
use crate::limits::{in_file, read};

/// Convert limits from one form into another; what gets lost is told on stderr
///
/// Nothing is asked of this machine, but for the numbers of the block devices that a domain of libvirt names by path.
#[derive(Debug, Args)]
pub struct Convert {
    /// What FILE is: oci (a LinuxResources object, or a whole config.json), v1 (lines of FILE VALUE, as in
    /// `grep -s . /sys/fs/cgroup/*/vm1/*`, or a JSON object of files), or libvirt (the XML of a domain, as `virsh dumpxml`
    /// prints it: its vcpu, cputune, memtune, blkiotune and numatune)
    #[arg(long, value_name = "FORM", hide_possible_values = true)]
    from: From,

    /// What it is to become: v2 (the files of cgroup v2; the JSON is an OCI LinuxResources object with all of it in `unified`,
    /// as --resources takes it), systemd (properties of a unit on cgroup v2, as they are on the bus), or oci (a LinuxResources
    /// object, for any host)
    #[arg(long, value_name = "FORM", hide_possible_values = true)]
    to: To,

    /// The cgroup version of the host that the domain of libvirt runs on, v1 (hybrid too) or v2: it decides the scale of its
    /// shares, 1024 or 100 being the default [default: v1's scale, and a line on stderr where v2's is possible]
    #[arg(long, value_name = "VERSION", hide_possible_values = true)]
    libvirt_host: Option<LibvirtHost>,

    /// What to convert; - is standard input
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    Oci,
    V1,
    Libvirt,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LibvirtHost {
    V1,
    V2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    V2,
    Systemd,
    Oci,
}

impl Convert {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = self.libvirt_host.map(|host| match host {
            LibvirtHost::V1 => Mode::V1,
            LibvirtHost::V2 => Mode::V2,
        });
        if let (Some(host), From::Oci | From::V1) = (host, self.from) {
            let why = "is for domains of libvirt: needs --from libvirt";
            return Err(Error::invalid("libvirt-host", host.as_str(), why));
        }
        let text = read(&self.file)?;
        let given = match self.from {
            From::Oci => oci(&text),
            From::V1 => Resources::from_v1_files(&text),
            From::Libvirt => LibvirtDomain::from_xml_of(host, &text, block_device).map(|(domain, report)| {
                (if self.to == To::Oci { domain.resources } else { domain.into_v2_resources() }, report)
            }),
        };
        let (resources, report) = given.map_err(|error| in_file(error, &self.file))?;
        let tell = |mut report: Report, lost: Report| {
            report.append(lost);
            context.unsupported().mind(&report)?;
            context.output.report_always(&report);
            Ok::<_, ringfence::Error>(())
        };
        match self.to {
            To::V2 => {
                let (converted, lost) = resources.to_v2()?;
                tell(report, lost)?;
                context.output.object(&converted, Converted(&converted))?;
            }
            To::Systemd => {
                let (properties, lost) = resources.to_systemd()?;
                tell(report, lost)?;
                context.output.object(&properties, &properties)?;
            }
            To::Oci => {
                resources.validate()?;
                tell(report, Report::default())?;
                context.output.object(&resources, resources.to_oci_json()?)?;
            }
        }
        Ok(Exit::Done)
    }
}

fn block_device(path: &Path) -> Option<DeviceNumber> {
    let node = DeviceNode::at(path).ok().filter(|node| node.kind == DeviceKind::Block)?;
    Some(DeviceNumber { major: node.major, minor: node.minor })
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
                writeln!(f, "{} = {}", Escaped(file), Escaped(line))?;
            }
        }
        for rule in &resources.devices {
            writeln!(f, "devices {} {rule}", if rule.allow { "allow" } else { "deny" })?;
        }
        Ok(())
    }
}
