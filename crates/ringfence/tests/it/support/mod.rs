//! Sandboxes of a test's own that leave nothing behind, and the kernel's view of them.

#![allow(dead_code)] // Each of the tests uses its part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees #[test] alone.

pub mod soak;
pub mod standing;
pub mod strace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringfence::{
    Cgroup, CgroupPath, Child, Command, DeviceNumber, Error, ErrorKind, Host, Limit, Outcome, Remaining,
    Resources, Result, Sandbox, SandboxConfig, Status, null,
};

pub const SOON: Duration = Duration::from_secs(30);
pub const MIB: u64 = 1 << 20;

/// Whether sandboxes are units of systemd: the testbed runs tests a second time so.
pub fn by_systemd() -> bool {
    std::env::var_os("RINGFENCE_TEST_DRIVER").is_some_and(|driver| driver == "systemd")
}

/// How many descriptors this process has.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The name that the test harness has for a test: its path in this binary.
pub fn test_path(module: &str, test: &str) -> String {
    let (_, module) = module.split_once("::").unwrap();
    format!("{module}::{test}")
}

/// Runs a test that needs a process to itself (for its limit or its number of open files) in a new process; false there. One
/// such process at a time.
pub fn runs_alone(module: &str, test: &str) -> bool {
    const ALONE: &str = "RINGFENCE_TEST_ALONE";
    static ONE: Mutex<()> = Mutex::new(());
    let test = test_path(module, test);
    if std::env::var_os(ALONE).is_some_and(|alone| *alone == *test) {
        return false;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let done = command.args(["--exact", &test, "--test-threads=1"]).env(ALONE, &test).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}\n{}", text(&done.stdout), text(&done.stderr));
    true
}

/// A name of its own for each sandbox.
pub fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("rf-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A path of its own for each sandbox, for the driver under test.
pub fn path(what: &str) -> CgroupPath {
    let name = name(what);
    if by_systemd() { format!("ringfence.slice:rf:{name}") } else { name }.parse().unwrap()
}

/// Stops a slice of the test's own, with all that is in it.
pub fn stop(slice: &str) {
    assert!(std::process::Command::new("systemctl").args(["stop", slice]).status().unwrap().success());
}

/// A process that does nothing.
pub fn sleeper() -> Command {
    Command::new("sleep").args(["1000"]).stdin(null().unwrap()).stdout(null().unwrap())
}

/// A sandbox that leaves nothing behind, however its test ends.
///
/// With systemd a process holds it, so that it is there; what is said of processes is said of the others.
pub struct Guarded {
    sandbox: Sandbox,
    holder: Option<Child>,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let both = || std::iter::once(&self.sandbox).chain(self.sandbox.overhead());
        let paths: Vec<_> = both().flat_map(|one| one.paths().into_values()).collect();
        _ = self.sandbox.destroy(Remaining::Kill, SOON);
        if let Some(holder) = &self.holder {
            _ = holder.wait();
        }
        if std::thread::panicking() {
            return;
        }
        assert!(paths.iter().all(|path| !path.exists()), "left behind: {paths:?}");
        let units = both().filter_map(|one| match one.state().path {
            CgroupPath::Systemd(name) => Some(name),
            _ => None,
        });
        for name in units {
            let unit = Path::new("/run/systemd/transient").join(name.unit());
            // systemd unloads it a moment after its end.
            let deadline = Instant::now() + SOON;
            while unit.exists() {
                assert!(Instant::now() < deadline, "left behind: {unit:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl std::ops::Deref for Guarded {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Guarded {
    pub fn new(host: &Host, what: &str, resources: Resources) -> Self {
        Self::make(host, &SandboxConfig::new(path(what)).resources(resources))
    }

    pub fn make(host: &Host, config: &SandboxConfig) -> Self {
        let mut made = Self::planned(host, config);
        if by_systemd() {
            made.holder = Some(made.hold(&sleeper()).unwrap());
        }
        made
    }

    /// What is wrong with a sandbox: with systemd some of it shows when it starts.
    pub fn refused(
        host: &Host,
        path: CgroupPath,
        config: impl FnOnce(SandboxConfig) -> SandboxConfig,
    ) -> Error {
        let config = &config(SandboxConfig::new(path.clone()));
        let made = Sandbox::create(host, config).map(|(made, _)| made);
        let error = match made {
            Ok(made) if by_systemd() => made.hold(&sleeper()).map(drop).unwrap_err(),
            made => made.map(drop).unwrap_err(),
        };
        assert_eq!(Cgroup::open(host, &path).unwrap_err().kind(), ErrorKind::NotFound, "{error}");
        error
    }

    /// With systemd there is no cgroup yet.
    pub fn planned(host: &Host, config: &SandboxConfig) -> Self {
        Self { sandbox: Sandbox::create(host, config).unwrap().0, holder: None }
    }

    /// How many processes hold it.
    pub fn held(&self) -> u64 {
        self.holder.iter().len() as u64
    }

    fn others(&self, mut pids: BTreeSet<u32>) -> BTreeSet<u32> {
        pids.retain(|pid| self.holder.as_ref().is_none_or(|holder| holder.pid() != *pid));
        pids
    }

    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        self.sandbox.processes().map(|pids| self.others(pids))
    }

    pub fn status(&self) -> Result<Status> {
        let status = self.sandbox.status()?;
        Ok(if status == Status::Running && self.processes()?.is_empty() { Status::Empty } else { status })
    }

    pub fn kill(&self, timeout: Duration) -> Result<BTreeSet<u32>> {
        self.sandbox.kill(timeout).map(|pids| self.others(pids))
    }

    pub fn destroy(&self, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let mut outcome = self.sandbox.destroy(remaining, timeout)?;
        outcome.killed = self.others(outcome.killed);
        Ok(outcome)
    }

    /// For a test in which quotas come and go: the kernel patches its code for the first one on the machine and for the
    /// last, and an emulator may hang at that.
    pub fn with_a_quota(host: &Host) -> Self {
        Self::new(host, "quota", Resources::new().cpu_quota(100_000))
    }

    /// The directory of a controller, and whether it is v1's.
    pub fn dir(&self, controller: &str) -> (PathBuf, bool) {
        let paths = self.paths();
        match paths.get(controller) {
            Some(dir) => (dir.clone(), true),
            None => (paths["unified"].clone(), false),
        }
    }

    /// What a file holds; the name is the one of this machine's version of the controller.
    pub fn file(&self, controller: &str, v1: &str, v2: &str) -> Option<String> {
        let (dir, is_v1) = self.dir(controller);
        let text = std::fs::read_to_string(dir.join(if is_v1 { v1 } else { v2 })).ok()?;
        Some(text.trim_end().to_owned())
    }

    pub fn is_on_v1(&self, controller: &str) -> bool {
        self.dir(controller).1
    }

    /// All files that settings are written to, and what they hold.
    pub fn files(&self) -> BTreeMap<PathBuf, String> {
        let dirs: BTreeSet<PathBuf> = self.paths().into_values().collect();
        let settings = |name: &str| {
            ["cpu.", "cpuset.", "memory.", "pids.", "io.", "blkio.", "hugetlb.", "net_", "rdma.", "devices."]
                .iter()
                .any(|start| name.starts_with(start))
                && ![
                    "stat",
                    "usage",
                    "current",
                    "peak",
                    "events",
                    "pressure",
                    "effective",
                    "slabinfo",
                    "failcnt",
                    "io_serv",
                    "prioidx",
                ]
                .iter()
                .any(|part| name.contains(part))
        };
        let mut files = BTreeMap::new();
        for dir in dirs {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if settings(&path.file_name().unwrap().to_string_lossy())
                    && let Ok(text) = std::fs::read_to_string(&path)
                {
                    files.insert(path, text);
                }
            }
        }
        files
    }

    pub fn number(&self, controller: &str, v1: &str, v2: &str) -> Limit {
        match self.file(controller, v1, v2).unwrap().parse() {
            Ok(number) if number < i64::MAX.cast_unsigned() - 65_536 => Limit::Value(number),
            _ => Limit::Max,
        }
    }

    /// A process inside that holds this many MiB of memory, and does nothing else any more.
    pub fn holding(&self, mib: u64) -> Child {
        let ready = std::env::temp_dir().join(name("ready"));
        let script = format!(
            "x=$(head -c {} /dev/zero | tr '\\0' x); : > {}; kill -STOP $$",
            mib * MIB,
            ready.display()
        );
        let command = Command::new("sh").args(["-c", &script]).stdin(null().unwrap()).stdout(null().unwrap());
        let child = self.spawn(&command).unwrap();
        let deadline = Instant::now() + 4 * SOON;
        let stopped = |child: &Child| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        while !ready.exists() || !stopped(&child) {
            assert!(Instant::now() < deadline, "it never held {mib} MiB");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::remove_file(ready).unwrap();
        child
    }
}

/// Says that something cannot be tested here, past the test harness's capture of output.
pub fn skip(why: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    _ = std::io::stderr().write_all(format!("SKIPPED: {}: {why}\n", thread.name().unwrap_or("?")).as_bytes());
}

/// Disks of this machine, whatever is on them: nothing is read or written but where a test says so.
pub fn disks() -> Vec<DeviceNumber> {
    let mut disks: Vec<_> =
        std::fs::read_dir("/sys/block").unwrap().map(|disk| disk.unwrap().path()).collect();
    disks.sort();
    let number = |disk: &PathBuf| std::fs::read_to_string(disk.join("dev")).ok()?.trim().parse().ok();
    disks.iter().filter_map(number).collect()
}
