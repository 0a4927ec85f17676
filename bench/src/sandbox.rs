//! A sandbox of the benchmark's own, with a process inside that has done some work.

use std::collections::BTreeSet;
use std::io::Read;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Stdio};
use std::time::Duration;

use ringfence::{Command, Host, Remaining, Resources, Sandbox, SandboxConfig, null};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::Result;

pub struct BenchSandbox {
    pub sandbox: Sandbox,
    /// Below the root of each hierarchy.
    pub name: String,
}

/// Some CPU time, memory and tasks, then it waits.
const WORK: &str = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; \
    head -c 8000000 /dev/zero | tail -c 8000000 | wc -c >&2; echo done; exec sleep 3600";

impl BenchSandbox {
    pub fn new(host: &Host) -> Result<Self> {
        let name = format!("rf-bench-{}", std::process::id());
        let limits = Resources::new().memory_limit(1 << 30).cpu_quota(50_000).pids_limit(64);
        let config = SandboxConfig::new(format!("/{name}").parse()?).resources(limits);
        let (sandbox, _) = Sandbox::create(host, &config)?;
        let this = Self { sandbox, name };
        let (mut done, stdout) = std::io::pipe()?;
        // SIGKILL, should the benchmark be interrupted.
        let work =
            Command::new("sh").args(["-c", WORK]).stdout(stdout).stderr(null()?).parent_death_signal(9);
        this.sandbox.spawn(&work)?;
        drop(work);
        done.read_exact(&mut [0; 5])?;
        Ok(this)
    }

    /// The directories, in every hierarchy.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        self.sandbox.paths().into_values().collect()
    }

    /// The files that `once` reads in the cgroup, as `DIRECTORY/FILE` with the name of the hierarchy's directory.
    pub fn reads(&self, once: impl FnOnce() -> Result<()>) -> Result<BTreeSet<PathBuf>> {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut watched = Vec::new();
        for directory in self.directories() {
            let id = inotify::add_watch(&watch, &directory, WatchFlags::ACCESS)?;
            watched.push((id, directory));
        }
        once()?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        let mut files = BTreeSet::new();
        while let Ok(event) = events.next() {
            let directory = watched.iter().find(|(id, _)| *id == event.wd()).map(|(_, directory)| directory);
            if let (Some(directory), Some(file)) = (directory, event.file_name())
                && !event.events().contains(ReadFlags::ISDIR)
            {
                files.insert(directory.join(file.to_str()?));
            }
        }
        Ok(files)
    }
}

impl Drop for BenchSandbox {
    fn drop(&mut self) {
        if let Err(error) = self.sandbox.destroy(Remaining::Kill, Duration::from_secs(5)) {
            eprintln!("{} is left behind: {error}", self.name);
        }
    }
}

/// A process that does nothing, until it is dropped.
pub struct Sleeper(Child);

impl Sleeper {
    pub fn start() -> Result<Self> {
        Ok(Self(process::Command::new("sleep").arg("100000").stdout(Stdio::null()).spawn()?))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The names of files, for people.
pub fn names<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> String {
    let names: Vec<_> = files.into_iter().filter_map(|file| Path::new(file).file_name()?.to_str()).collect();
    names.join(" ")
}
