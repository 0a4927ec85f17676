//! `place-vcpus`: the helper process of `run --detach`, which moves the vCPU threads when the VMM has made them.

use std::path::Path;
use std::process::{Command, Stdio};

use clap::Args;
use nix::unistd::{close, setsid};
use ringfence::{Error, ErrorKind, Host, ProcessIdentity, Result, SandboxId};

use crate::commands::classify::{AT_START, SearchEnd, StartSearch};
use crate::context::Context;
use crate::exit::Exit;

/// Wait until a virtual machine has its vCPU threads, and move them
#[derive(Debug, Args)]
pub struct PlaceVcpus {
    /// Name of the sandbox
    id: SandboxId,

    /// PID of its holder
    pid: u32,

    /// Start time of its holder
    start_time: u64,
}

impl PlaceVcpus {
    /// Takes the lock of the sandbox only while it moves threads.
    pub fn run(&self, context: &Context) -> Result<Exit> {
        leave_caller();
        let host = context.host()?;
        let Some(holder) = ProcessIdentity::of(self.pid).filter(|one| one.start_time == self.start_time)
        else {
            return Ok(Exit::Done);
        };
        let search = StartSearch { context, host: &host, id: &self.id, holder: &holder, within: AT_START };
        match search.run(|| !holder.is_alive(), || ()) {
            SearchEnd::Failed(error, _) => Err(error),
            SearchEnd::Placed(_) | SearchEnd::Gone => Ok(Exit::Done),
        }
    }
}

/// Keeps nothing of the caller: not its session, directory, lock files or pipes.
fn leave_caller() {
    // Fails for a process that leads a group: then nobody started this as a helper.
    _ = setsid();
    _ = std::env::set_current_dir("/");
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = open.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inherited: Vec<_> = numbers.filter(|fd| *fd > 2).collect();
    // The descriptor of the list itself is closed already.
    inherited.into_iter().for_each(|fd| _ = close(fd));
}

/// Starts the helper, which outlives this process.
pub fn start(context: &Context, host: &Host, id: &SandboxId, holder: &ProcessIdentity) -> Result<()> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let own = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut command = Command::new(own);
    command.arg("--state-dir").arg(absolute(context.store(host).directory()));
    if let Some(root) = &context.global.cgroup_root {
        command.arg("--cgroup-root").arg(absolute(root));
    }
    command.args(["--timeout", &context.global.timeout.as_secs_f64().to_string(), "place-vcpus", "--"]);
    command
        .arg(id.to_string())
        .args([u64::from(holder.pid), holder.start_time].map(|number| number.to_string()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop).map_err(|error| {
        Error::new(ErrorKind::Kernel, "cannot start the process that looks for the vCPU threads")
            .with_source(error)
    })
}
