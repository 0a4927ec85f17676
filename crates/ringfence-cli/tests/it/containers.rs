//! Hosts that are not the whole machine: a relocated root, a cgroup namespace, a container with the cgroups of a part.
//!
//! Each script runs in a mount namespace of its own, so that what it mounts is nobody else's.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::support::place::{ALL, ORDINARY, Place, UID, enable, has_v2};
use crate::support::{Done, Sandbox, binary, by_systemd, driver, finish, hierarchies, mode, skip};

testbed! {
    drivers: "cgroupfs systemd";
}

const BY_HAND: &str = "what is delegated by hand: units of a user have a test of their own";

/// Runs a shell script with `$ID` and `$RF` (the command), in namespaces of its own.
fn script(sandbox: &Sandbox, namespaces: &str, text: &str) -> Done {
    let mut command = Command::new("unshare");
    command.args([namespaces, "--propagation", "private", "sh", "-euc", text]);
    command.env("ID", &sandbox.id).env("RINGFENCE_STATE_DIR", sandbox.state_dir());
    command.env("RINGFENCE_DRIVER", driver()).env("RF", binary());
    finish(command)
}

/// With systemd, which on v1 removes every empty cgroup of a hierarchy in which its last unit has ended, the container's
/// too.
fn one_at_a_time() -> Option<MutexGuard<'static, ()>> {
    static UNITS: Mutex<()> = Mutex::new(());
    by_systemd().then(|| UNITS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Where the cgroups of systemd's units are out of sight, a unit is not left to itself.
#[track_caller]
fn out_of_sight(sandbox: &Sandbox, done: Done, errno: i32) {
    let error = done.exits(1).error();
    assert_eq!((&error["kind"], &error["errno"]), (&"kernel".into(), &errno.into()), "{error}");
    assert!(error["path"].as_str().unwrap().ends_with(&sandbox.cgroup()), "{error}");
    sandbox.is_gone();
}

/// The cgroup that plays the container, in every hierarchy; gone when dropped.
struct Container {
    name: String,
    dirs: Vec<PathBuf>,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Container {
    fn named(name: &str) -> Self {
        let alone = one_at_a_time();
        let name = format!("rf-ct-{}-{name}", std::process::id());
        let dirs: Vec<_> = hierarchies().iter().map(|hierarchy| hierarchy.point.join(&name)).collect();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
            let above = dir.parent().unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let (Ok(value), true) =
                    (std::fs::read_to_string(above.join(file)), dir.join("tasks").exists())
                {
                    std::fs::write(dir.join(file), value.trim()).unwrap();
                }
            }
        }
        Self { name, dirs, _alone: alone }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        fn remove(dir: &std::path::Path) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            for _ in 0..200 {
                match std::fs::remove_dir(dir) {
                    Err(error) if error.raw_os_error() == Some(16) => {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
        self.dirs.iter().for_each(|dir| remove(dir));
    }
}

#[test]
fn a_directory_of_the_v2_tree_serves_as_the_root() {
    let Some(unified) = hierarchies().into_iter().find(|hierarchy| hierarchy.is_v2) else {
        return skip("this machine has no cgroup v2");
    };
    let sandbox = Sandbox::named("relocated");
    let container = Container::named("root");
    let root = unified.point.join(&container.name);
    let ringfence = |verb: &str, rest: &[&str]| {
        let mut command = sandbox.ringfence(&["--cgroup-root", root.to_str().unwrap(), verb, &sandbox.id]);
        command.args(rest);
        finish(command)
    };
    if by_systemd() {
        return out_of_sight(&sandbox, ringfence("create", &["--hold", "-o", "json"]), 2);
    }
    let shown = ringfence("create", &["-o", "json"]).exits(0).json();
    let dir = root.join("ringfence").join(&sandbox.id);
    assert_eq!(shown["paths"]["unified"], dir.to_str().unwrap(), "{shown}");
    assert!(dir.is_dir());
    let said = ringfence("exec", &["--", "cat", "/proc/self/cgroup"]).exits(0).stdout;
    let own = format!("0::/{}/ringfence/{}", container.name, sandbox.id);
    assert!(said.lines().any(|line| line == own), "{said}");
    ringfence("rm", &[]).exits(0);
    assert!(!root.join("ringfence").exists());
}

#[test]
fn in_a_container_all_happens_below_what_it_sees() {
    let sandbox = Sandbox::named("bind");
    let container = Container::named("bind");
    // What a container engine without cgroup namespaces does: it mounts a part of each hierarchy over the whole.
    let mut mounts = String::new();
    for (hierarchy, dir) in hierarchies().iter().zip(&container.dirs) {
        mounts += &format!("mount --bind {} {}\n", dir.display(), hierarchy.point.display());
    }
    if by_systemd() {
        let text = format!("{mounts} $RF -o json create $ID --hold --pids 20 --memory 64M");
        out_of_sight(&sandbox, script(&sandbox, "--mount", &text), 2);
        return assert!(container.dirs.iter().all(|dir| !dir.join("ringfence.slice").exists()));
    }
    let text = format!(
        "{mounts}
         $RF create $ID --pids 20 --memory 64M --memory-swap 64M --cpus 0.5
         $RF run $ID-run --pids 20 -- cat /proc/self/cgroup
         $RF -o json show $ID
         $RF rm $ID"
    );
    let done = script(&sandbox, "--mount", &text);
    // On v2 the part has to offer controllers, which its parent enables.
    if mode() == "v2" && done.code != 0 {
        assert!(
            done.stderr.contains("enabled above") || done.stderr.contains("offers no"),
            "{}",
            done.stderr
        );
        return;
    }
    let done = done.exits(0);
    let below = format!("/{}/ringfence/{}-run", container.name, sandbox.id);
    let own = done.stdout.lines().filter(|line| line.ends_with(&below)).count();
    assert_eq!(own, hierarchies().len(), "{}", done.stdout);
    for dir in &container.dirs {
        assert!(!dir.join("ringfence").exists());
    }
}

#[test]
fn a_namespace_root_with_processes_is_an_error_that_names_the_remedy_which_works() {
    if mode() != "v2" {
        return skip("controllers are on v1 here");
    }
    if by_systemd() {
        return skip("systemd enables the controllers of its units itself");
    }
    let sandbox = Sandbox::named("namespace");
    let container = Container::named("namespace");
    let root = &container.dirs[0];
    let unified = root.parent().unwrap();
    for controller in ["+memory", "+pids", "+cpu"] {
        std::fs::write(unified.join("cgroup.subtree_control"), controller).unwrap();
    }
    // A shell in the cgroup that becomes the root of the namespace, as the first process of a container is.
    let text = format!(
        "echo $$ > {root}/cgroup.procs
         exec unshare --cgroup sh -euc '
             umount -l {unified}; mount -t cgroup2 none {unified}
             if $RF create $ID --memory 64M; then echo it must not work; exit 1; fi
             test ! -e {unified}/ringfence
             $RF create $ID --memory 64M --pids 20 --evacuate
             cat {unified}/cgroup.subtree_control
             $RF exec $ID -- cat /proc/self/cgroup
             $RF rm $ID'",
        root = root.display(),
        unified = unified.display(),
    );
    let done = script(&sandbox, "--mount", &text).exits(0);
    assert!(done.stderr.contains("evacuate"), "{}", done.stderr);
    assert!(
        done.stdout.lines().any(|line| line.contains("memory") && line.contains("pids")),
        "{}",
        done.stdout
    );
    let own = format!("0::/ringfence/{}", sandbox.id);
    assert!(done.stdout.lines().any(|line| line == own), "{}", done.stdout);
}

#[test]
fn a_read_only_cgroup_file_system_is_an_error_that_says_so() {
    let _alone = one_at_a_time();
    let sandbox = Sandbox::named("read-only");
    let mut mounts = String::new();
    for hierarchy in hierarchies() {
        mounts += &format!("mount -o remount,bind,ro {}\n", hierarchy.point.display());
    }
    let verbs = match by_systemd() {
        false => ["create $ID --pids 20", "create $ID --path /$ID"],
        // On v2 systemd lacks a word for the burst alone.
        true => ["create $ID --hold --cpus 0.5", "create $ID --hold --cpus 0.5 --path machine.slice:rf:$ID"],
    };
    for verb in verbs {
        let error = script(&sandbox, "--mount", &format!("{mounts}\n$RF -o json {verb}")).exits(1).error();
        assert_eq!((&error["kind"], &error["errno"]), (&"kernel".into(), &30.into()), "{error}");
        assert!(error["message"].as_str().unwrap().contains("read-only"), "{error}");
        assert!(error["path"].as_str().unwrap().starts_with("/sys/fs/cgroup"), "{error}");
        assert!(!error.to_string().contains("undone"), "{error}");
        sandbox.is_gone();
    }
    if by_systemd() && mode() == "v2" {
        script(&sandbox, "--mount", &format!("{mounts}\n$RF create $ID --hold --pids 20")).exits(0);
        assert_eq!(sandbox.file("pids.max").unwrap(), "20");
    }
}

#[test]
fn a_read_only_cgroup_file_system_leaves_a_user_without_a_cgroup_and_says_why() {
    if by_systemd() {
        return skip(BY_HAND);
    }
    let place = Place::delegated("read-only", &[]);
    let mut text = String::new();
    for hierarchy in hierarchies() {
        text += &format!("mount -o remount,bind,ro {}\n", hierarchy.point.display());
    }
    text += &format!("exec setpriv {} sh -euc \"$AS_USER\"", ORDINARY.join(" "));
    let in_mounts = |as_user: &str| {
        let text = format!(
            "export AS_USER='{as_user}'\nexec unshare --mount --propagation private sh -euc '{text}'"
        );
        place.script_in("leaf", &["--no-new-privs"], &text)
    };
    let done = in_mounts("ringfence run $ID --pids 9 -- cat /proc/self/cgroup").exits(0);
    let own = format!("/{}/leaf", place.name);
    // A v2 tree that was mounted once, and is no more, is listed all the same.
    let is_v2_mounted = hierarchies().iter().any(|hierarchy| hierarchy.is_v2);
    let mut places = done.stdout.lines().filter(|line| is_v2_mounted || !line.starts_with("0::"));
    assert!(places.all(|line| line.ends_with(&own)), "{}", done.stdout);
    assert!(done.stderr.contains("pids.limit = 9: ") && done.stderr.contains("read-only"), "{}", done.stderr);
    let done = in_mounts("ringfence --strict create $ID").exits(1);
    assert!(done.stderr.contains("read-only"), "{}", done.stderr);
    place.is_clean();
}

#[test]
fn root_in_a_cgroup_namespace_makes_sandboxes_below_what_is_mounted() {
    let sandbox = Sandbox::named("unshared");
    let container = Container::named("unshared");
    let mut join = String::new();
    for dir in &container.dirs {
        join += &format!("echo $$ > {}/cgroup.procs\n", dir.display());
    }
    if by_systemd() {
        let text = format!("{join} exec unshare --cgroup $RF -o json create $ID --hold --pids 20");
        return out_of_sight(&sandbox, script(&sandbox, "--mount", &text), 18);
    }
    // No mount of its own: what is mounted shows the whole machine.
    let text = format!(
        "{join}
         exec unshare --cgroup sh -euc '
             $RF create $ID --pids 20
             $RF run $ID-run --detach -- sleep 1000'"
    );
    let done = script(&sandbox, "--mount", &text);
    assert_eq!(sandbox.file("pids.max").unwrap(), "20");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if mounts.lines().any(|line| line.contains(" cgroup2 ") && line.contains("nsdelegate")) {
        // systemd mounts v2 so: limits can be set, but nothing leaves the namespace.
        let done = done.exits(125);
        assert!(done.stderr.contains("outside of this cgroup namespace"), "{}", done.stderr);
        return;
    }
    let done = done.exits(0);
    let pid = done.stdout.lines().last().unwrap();
    let seen = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = seen.lines().filter(|line| line.ends_with(&format!(":/ringfence/{}-run", sandbox.id)));
    assert_eq!(inside.count(), hierarchies().len(), "{seen}");
    for id in [sandbox.id.clone(), format!("{}-run", sandbox.id)] {
        finish(sandbox.ringfence(&["rm", "--kill", &id])).exits(0);
    }
}

/// Whether an ordinary user may make a user namespace here.
fn has_user_namespaces(place: &Place) -> bool {
    let done = place.script_in("", ORDINARY, "unshare --user --map-root-user true");
    if done.code != 0 {
        skip(&format!("no user namespaces: {}", done.stderr.trim()));
    }
    done.code == 0
}

#[test]
fn root_of_a_user_namespace_to_whom_nothing_is_delegated_is_an_ordinary_user() {
    if by_systemd() {
        return skip(BY_HAND);
    }
    let place = Place::named("no-root");
    if !has_user_namespaces(&place) {
        return;
    }
    let as_root = |text: &str| {
        let text = format!("exec unshare --user --map-root-user --cgroup sh -euc '{text}'");
        place.script_in("", ORDINARY, &text)
    };
    let done = as_root("id -u; ringfence run $ID --pids 9 -- touch ran").exits(0);
    assert_eq!(done.stdout, "0\n");
    assert!(done.stderr.contains("pids.limit = 9: no cgroup is delegated"), "{}", done.stderr);
    assert!(place.runtime().join("ran").exists());
    as_root("ringfence --strict create $ID").exits(1);
    let error = as_root("ringfence -o json create $ID --path /$ID").exits(1).error();
    assert_eq!(error["errno"], 13, "{error}");
    place.is_clean();
}

#[test]
fn a_container_of_a_user_has_the_controllers_of_its_namespace_and_the_same_remedy() {
    if by_systemd() {
        return skip(BY_HAND);
    }
    if !has_v2(ALL) {
        return skip("v2 has no controllers here");
    }
    let place = Place::delegated("contained", ALL);
    if !has_user_namespaces(&place) {
        return;
    }
    // What becomes the namespace's root: delegated, with controllers, and with the container's first process.
    let root = place.v2().join("leaf");
    enable(place.v2(), ALL);
    for file in [".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        chown(root.join(file), Some(UID), Some(UID)).unwrap();
    }
    let point = place.v2().parent().unwrap().display().to_string();
    let done = place.script(&format!(
        "exec unshare --user --map-root-user --mount --cgroup sh -euc '
             mount -t tmpfs none {point}
             mount -t cgroup2 none {point}
             if ringfence create $ID --memory 64M --pids 9; then echo it must not work; exit 1; fi
             test ! -e {point}/ringfence
             ringfence create $ID --memory 64M --pids 9 --evacuate
             cat {point}/ringfence/$ID/memory.max {point}/ringfence/$ID/pids.max
             ringfence exec $ID -- cat /proc/self/cgroup
             if ringfence create $ID-o --owner 5:5; then echo there is no such user; exit 1; fi
             test ! -e {point}/ringfence/$ID-o
             ringfence rm $ID
             test ! -e {point}/ringfence
             cat /proc/self/cgroup'"
    ));
    let done = done.exits(0);
    assert!(done.stderr.contains("--evacuate") && done.stderr.contains("CAP_BPF"), "{}", done.stderr);
    assert!(done.stderr.contains("user namespace has no such user"), "{}", done.stderr);
    let expected = format!("67108864\n9\n0::/ringfence/{}\n0::/evacuated\n", place.sandbox.id);
    assert!(done.stdout.ends_with(&expected), "{}", done.stdout);
    place.is_clean();
}
