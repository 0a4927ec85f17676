//! For tests on this machine's kernel: a cgroup of our own, and processes in it that open devices.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::skip::skip;

/// A directory below the root of a hierarchy; removed at the end.
pub(crate) struct RealCgroup {
    pub(crate) dir: PathBuf,
    fd: fs::File,
}

/// Those who count descriptors and those who open them take turns.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl RealCgroup {
    /// In the v1 hierarchy of devices.
    pub(crate) fn v1() -> Option<Self> {
        Self::below(&["/sys/fs/cgroup/devices"], "devices.list")
    }

    /// In the v2 tree.
    pub(crate) fn v2() -> Option<Self> {
        Self::below(&["/sys/fs/cgroup/unified", "/sys/fs/cgroup"], "cgroup.controllers")
    }

    fn below(roots: &[&str], file: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("rf-test-devices-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let root = roots.iter().map(Path::new).find(|root| root.join(file).exists());
        let Some(root) = root else {
            skip(&format!("there is no {file} here"));
            return None;
        };
        Self::make(root.join(name)).inspect_err(|error| skip(&format!("no cgroup can be made: {error}"))).ok()
    }

    fn make(dir: PathBuf) -> std::io::Result<Self> {
        fs::create_dir(&dir)?;
        Ok(Self { fd: fs::File::open(&dir)?, dir })
    }

    pub(crate) fn child(&self, name: &str) -> Self {
        Self::make(self.dir.join(name)).unwrap()
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.dir.join(file)).unwrap()
    }

    pub(crate) fn write(&self, file: &str, value: &str) -> std::io::Result<()> {
        fs::write(self.dir.join(file), value)
    }

    /// A shell that is in the cgroup before it runs the script; `$1` is the argument.
    fn shell(&self, script: &str, argument: &Path) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("echo 0 > '{}/cgroup.procs' || exit 99\n{script}", self.dir.display()));
        shell.arg("sh").arg(argument).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shell
    }

    /// Whether a process in the cgroup may do this with the device: `r`, `w`, `rw` open it, `m` makes a node.
    pub(crate) fn allows(&self, letters: &str, (major, minor): (u32, u32)) -> bool {
        // Nodes can be opened there; not in /tmp where that is mounted with nodev, as systemd does.
        let scratch = tempfile::tempdir_in("/dev").unwrap();
        let node = scratch.path().join("node");
        let make = format!("mknod \"$1\" c {major} {minor}");
        let script = match letters {
            "m" => make.as_str(),
            _ => {
                let made =
                    Command::new("/bin/sh").arg("-c").arg(&make).arg("sh").arg(&node).status().unwrap();
                assert!(made.success());
                match letters {
                    "r" => ": < \"$1\"",
                    "w" => ": > \"$1\"",
                    "rw" => ": <> \"$1\"",
                    _ => panic!("{letters}"),
                }
            }
        };
        let output = self.shell(script, &node).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("Operation not permitted"), "{script}: {said}");
        output.status.success()
    }

    /// A process that opens devices for reading again and again, until it is told to stop; it must be able to open the
    /// allowed ones each time, and the denied ones never.
    pub(crate) fn opening(&self, allowed: &[&str], denied: &[&str]) -> Opening {
        let mut opens: String = allowed.iter().map(|path| format!(": < {path}\n")).collect();
        for path in denied {
            opens += &format!("if {{ true < {path}; }} 2>&-; then echo {path} was open >&2; exit 98; fi\n");
        }
        let stop = tempfile::NamedTempFile::new().unwrap();
        let script = format!("echo ready\nn=0\nwhile [ -e \"$1\" ]; do\n{opens}n=$((n+1))\ndone\necho $n");
        let mut child = self.shell(&script, stop.path()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Opening { child, stop }
    }
}

impl Drop for RealCgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() || !self.dir.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("left behind: {}", self.dir.display());
    }
}

pub(crate) struct Opening {
    child: Child,
    stop: tempfile::NamedTempFile,
}

impl Opening {
    /// Ends it; panics if it met something else. Returns how often it tried all of them.
    pub(crate) fn stop(self) -> u32 {
        self.stop.close().unwrap();
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }
}
