//! A user without privileges, in a cgroup of its own, with a runtime directory and the command.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Done, Sandbox, binary, directories_named, finish, hierarchies, send};

/// `tester` in the testbed; nobody in particular elsewhere.
pub const UID: u32 = 1000;
/// An ordinary user has no capability at all.
pub const ORDINARY: &[&str] = &["--reuid", "1000", "--regid", "1000", "--clear-groups"];

/// A cgroup of root's in every hierarchy, in which a user's shell starts; and what it sees as its own machine: a runtime
/// directory and the command. Dropped, all of it is removed, with what runs inside.
pub struct Place {
    pub name: String,
    pub dirs: Vec<PathBuf>,
    pub sandbox: Sandbox,
}

impl Place {
    /// Nothing of it is delegated.
    pub fn named(name: &str) -> Self {
        let sandbox = Sandbox::named(name);
        let name = format!("rf-pl-{}-{name}", std::process::id());
        let dirs: Vec<_> = hierarchies().iter().map(|hierarchy| hierarchy.point.join(&name)).collect();
        let place = Self { name, dirs, sandbox };
        for dir in &place.dirs {
            make(dir);
        }
        let scratch = place.sandbox.scratch.path();
        provide(&scratch.join("ringfence"));
        fs::set_permissions(scratch, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(scratch.join("run")).unwrap();
        chown(scratch.join("run"), Some(UID), Some(UID)).unwrap();
        place
    }

    /// Delegated by hand, as an administrator does without systemd, with these controllers of v2; the shell is in a leaf.
    pub fn delegated(name: &str, controllers: &[&str]) -> Self {
        Self::delegated_where(name, controllers, |_| true)
    }

    /// In some hierarchies only.
    pub fn delegated_where(name: &str, controllers: &[&str], wanted: impl Fn(&Path) -> bool) -> Self {
        let place = Self::named(name);
        for dir in &place.dirs {
            make(&dir.join("leaf"));
            if !wanted(dir.parent().unwrap()) {
                continue;
            }
            if is_v2(dir) {
                enable(dir.parent().unwrap(), controllers);
            }
            for file in [".", "cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"] {
                // Half of these are v1's, or v2's.
                if dir.join(file).exists() {
                    chown(dir.join(file), Some(UID), Some(UID)).unwrap();
                }
            }
        }
        place
    }

    /// Runs a shell script with `$ID` and `ringfence`, in the cgroup `leaf` of this one, as a user.
    pub fn script_in(&self, leaf: &str, user: &[&str], text: &str) -> Done {
        let mut join = String::new();
        for dir in &self.dirs {
            join += &format!("echo $$ > {}\n", dir.join(leaf).join("cgroup.procs").display());
        }
        let mut command = Command::new("sh");
        command.args(["-euc", &format!("{join}exec setpriv \"$@\" sh -euc \"$SCRIPT\""), "sh"]).args(user);
        let path = format!("{}:{}", self.sandbox.scratch.path().display(), std::env::var("PATH").unwrap());
        command.env("SCRIPT", text).env("ID", &self.sandbox.id).env("PATH", path).env("NO_COLOR", "1");
        command.env("XDG_RUNTIME_DIR", self.runtime()).env("RINGFENCE_DRIVER", "cgroupfs");
        command.env_remove("RINGFENCE_STATE_DIR").current_dir(self.runtime());
        finish(command)
    }

    /// As an ordinary user, in the leaf.
    pub fn script(&self, text: &str) -> Done {
        self.script_in("leaf", ORDINARY, text)
    }

    pub fn runtime(&self) -> PathBuf {
        self.sandbox.scratch.path().join("run")
    }

    /// The cgroup itself, in the v2 tree.
    pub fn v2(&self) -> &Path {
        self.dirs.iter().find(|dir| is_v2(dir)).unwrap()
    }

    /// A file of the sandbox in the place where a relative path puts it.
    pub fn file(&self, name: &str) -> String {
        let path = self.v2().join("ringfence").join(&self.sandbox.id).join(name);
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .to_owned()
    }

    /// Nothing of the sandbox is left, the state directory aside.
    #[track_caller]
    pub fn is_clean(&self) {
        assert_eq!(directories_named(&self.sandbox.id), Vec::<PathBuf>::new());
        assert!(self.dirs.iter().all(|dir| !dir.join("ringfence").exists()));
        assert!(!self.runtime().join("ringfence").exists());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.dirs.iter().for_each(|dir| remove(dir));
    }
}

/// The command, where a user can execute it.
fn provide(at: &Path) {
    let binary = fs::canonicalize(binary()).unwrap();
    let may_pass = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o1 != 0);
    if binary.ancestors().all(may_pass) {
        std::os::unix::fs::symlink(binary, at).unwrap();
    } else {
        fs::copy(binary, at).unwrap();
    }
}

pub fn is_v2(dir: &Path) -> bool {
    dir.join("cgroup.subtree_control").exists()
}

/// A directory that a process can enter: a new cpuset of v1 is empty.
pub fn make(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for file in ["cpuset.cpus", "cpuset.mems"].map(|file| dir.join(file)) {
        if !is_v2(dir) && file.exists() {
            let above = dir.parent().unwrap().join(file.file_name().unwrap());
            fs::write(file, fs::read_to_string(above).unwrap().trim()).unwrap();
        }
    }
}

pub fn enable(dir: &Path, controllers: &[&str]) {
    for controller in controllers {
        fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    }
}

pub fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    for _ in 0..200 {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            _ = pid.parse().map(|pid| send(pid, rustix::process::Signal::KILL));
        }
        if fs::remove_dir(dir).is_ok() || !dir.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Whether v2 has these controllers to delegate.
pub fn has_v2(controllers: &[&str]) -> bool {
    let root = hierarchies().into_iter().find(|hierarchy| hierarchy.is_v2);
    let offered = root.map(|root| fs::read_to_string(root.point.join("cgroup.controllers")).unwrap());
    offered.is_some_and(|offered| {
        controllers.iter().all(|name| offered.split_whitespace().any(|known| known == *name))
    })
}

/// The controllers of the limits that are tested.
pub const ALL: &[&str] = &["cpu", "io", "memory", "pids"];
