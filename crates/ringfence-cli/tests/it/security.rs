//! Who attacks, and what becomes of it: a guest that took over its VMM, a user to whom a cgroup was delegated, and any other
//! user of the machine. SECURITY.md says which test stands for which line.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{self, Sandbox, finish, hierarchies, is_alive, until};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};
use serde_json::Value;

testbed! {
    guest: "own";
}

const USER: u32 = 1000;

/// A command as an ordinary user without privileges, as which a VMM should run, and as which owners do.
fn as_user(program: &str) -> Command {
    let mut command = Command::new(program);
    command.uid(USER).gid(USER);
    command
}

/// The directories of a sandbox that was given to the user: with systemd those that `--owner` hands over.
fn delegated(name: &str) -> (Sandbox, Vec<PathBuf>) {
    let sandbox = Sandbox::named(name);
    sandbox.create(&["--owner", &format!("{USER}:{USER}"), "--pids", "100"]);
    let directories = sandbox.directories();
    (sandbox, directories)
}

/// A child of the test, ended with it.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn join(pid: u32, directory: &Path) {
    fs::write(directory.join("cgroup.procs"), pid.to_string()).unwrap();
}

#[test]
fn a_vmm_without_privileges_neither_leaves_its_cgroups_nor_lifts_a_limit() {
    let sandbox = Sandbox::named("vmm");
    let roots: String =
        hierarchies().iter().map(|hierarchy| format!(" {}", hierarchy.point.display())).collect();
    // Whatever of its own cgroups, and of those above and beside them, may be written to. v1 lets everybody ask to be told of
    // events.
    let script = format!(
        "exec setpriv --reuid {USER} --regid {USER} --clear-groups sh -c '
            for root in {roots}; do
                find $root -maxdepth 3 \\( -type f -o -type d \\) -writable ! -name cgroup.event_control 2>/dev/null
                (echo 0 > $root/cgroup.procs) 2>/dev/null && echo left through $root
            done
            cat /proc/self/cgroup'"
    );
    let done = sandbox.run(&["--memory", "64M", "--pids", "20"], &["sh", "-c", &script]).exits(0);
    let (places, opened): (Vec<&str>, Vec<&str>) =
        done.stdout.lines().partition(|line| line.split(':').count() >= 3 && !line.starts_with('/'));
    // A user's own manager has cgroups that are the user's, and so have the tests beside this one: they are not reached, since
    // what is above both is not the user's.
    let is_others =
        |line: &str| line.contains("user@") || line.contains("rf-t-") && !line.contains(&sandbox.directory);
    let opened: Vec<_> = opened.iter().filter(|line| !is_others(line)).collect();
    assert!(opened.is_empty(), "{opened:?}");
    let inside = places.iter().filter(|place| place.ends_with(&sandbox.cgroup())).count();
    assert!(inside > 0, "{places:?}");
}

#[test]
fn names_of_any_bytes_are_listed_without_steering_the_terminal_and_removed() {
    let (sandbox, directories) = delegated("names");
    let names: [&[u8]; 4] = [b"\xff\xfe", b"\x1b[31mred", "é".as_bytes(), &[b'x'; 255]];
    let mut sleeps = Vec::new();
    for directory in &directories {
        for name in names {
            let inner = directory.join(OsStr::from_bytes(name));
            fs::create_dir(&inner).unwrap();
            fs::create_dir(inner.join(OsStr::from_bytes(b"\xc3\x28"))).unwrap();
        }
    }
    let pids = sandbox.dir("pids");
    for name in names {
        let sleep = Background(Command::new("sleep").arg("1000").spawn().unwrap());
        join(sleep.0.id(), &pids.join(OsStr::from_bytes(name)).join(OsStr::from_bytes(b"\xc3\x28")));
        sleeps.push(sleep);
    }
    for verb in ["ps", "show", "ps --threads"] {
        let done = sandbox.does(verb, &[]);
        assert!(!done.stdout.contains('\x1b'), "{verb}: {}", done.stdout);
    }
    let listed = sandbox.json("ps", &[]);
    for sleep in &sleeps {
        let is_listed = |task: &Value| task["pid"] == sleep.0.id();
        assert!(listed.as_array().unwrap().iter().any(is_listed), "{listed}");
    }
    finish(sandbox.ringfence(&["gc"])).exits(0);
    let refused = sandbox.attempt("rm", &[]).exits(5);
    assert!(!refused.stderr.contains('\x1b'), "{}", refused.stderr);
    let removed = sandbox.json("rm", &["--kill"]);
    assert!(removed["removed"].as_array().unwrap().len() >= names.len(), "{removed}");
    sandbox.is_gone();
}

#[test]
fn what_an_owner_froze_or_made_threaded_is_killed_and_removed_all_the_same() {
    // Waited for when the sandbox is gone: a frozen one would not end.
    let sleep = Background(Command::new("sleep").arg("1000").spawn().unwrap());
    let (sandbox, directories) = delegated("frozen");
    let mut is_frozen = false;
    for directory in &directories {
        let inner = directory.join("inner");
        fs::create_dir(&inner).unwrap();
        // A cpuset of v1 takes nobody as long as it is empty.
        if !inner.join("cpuset.cpus").exists() {
            join(sleep.0.id(), &inner);
        }
        for (file, value) in [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")] {
            is_frozen |= inner.join(file).exists() && fs::write(inner.join(file), value).is_ok();
        }
        if inner.join("cgroup.type").exists() {
            fs::create_dir_all(directory.join("other/threaded")).unwrap();
            fs::write(directory.join("other/threaded/cgroup.type"), "threaded").unwrap();
        }
    }
    assert!(is_frozen, "{directories:?}");
    sandbox.does("set", &["--pids", "50"]);
    sandbox.attempt("rm", &[]).exits(5);
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
}

#[test]
fn an_owner_that_makes_and_removes_cgroups_all_the_time_hinders_nobody() {
    let (sandbox, directories) = delegated("race");
    let arguments = directories.iter().map(|directory| directory.join("inner"));
    let script = "while :; do for d; do mkdir -p $d/a/b; rmdir $d/a/b $d/a $d; done; done 2>/dev/null";
    let mut races = as_user("sh");
    races.args(["-c", script, "sh"]).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
    let mut races = Background(races.spawn().unwrap());
    let inner = directories[0].join("inner");
    until("at it", || inner.exists());
    for _ in 0..3 {
        for (verb, args) in [
            ("ps", &["--threads"] as &[_]),
            ("show", &[]),
            ("stats", &[]),
            ("set", &["--pids", "60"]),
            ("freeze", &[]),
            ("thaw", &[]),
            ("exec", &["--", "true"]),
            ("gc", &[]),
        ] {
            // `gc` takes no ID.
            let done =
                if verb == "gc" { finish(sandbox.ringfence(&["gc"])) } else { sandbox.attempt(verb, args) };
            done.exits(0);
        }
    }
    sandbox.does("rm", &["--kill"]);
    assert!(races.0.try_wait().unwrap().is_none(), "it ended by itself");
    drop(races);
    sandbox.is_gone();
}

#[test]
fn what_is_mounted_over_a_sandbox_is_not_written_to() {
    let sandbox = Sandbox::named("mounted");
    sandbox.create(&["--pids", "40"]);
    let directory = sandbox.dir("pids");
    let before = sandbox.file("pids.max");
    let told = |verb: &str, args: &[&str]| {
        let command = sandbox.command(verb, args);
        let line: Vec<&OsStr> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
        let mut covered = Command::new("unshare");
        covered.args(["--mount", "sh", "-c"]);
        covered.arg("mount -t tmpfs none \"$0\" && { \"$@\"; code=$?; ls \"$0\"; exit $code; }");
        covered.arg(&directory).args(line);
        finish(covered)
    };
    let done = told("set", &["--pids", "41"]);
    assert!(done.code != 0 && done.stdout.is_empty(), "{} {}", done.stdout, done.stderr);
    assert!(done.stderr.contains(&sandbox.directory), "{}", done.stderr);
    assert_eq!(sandbox.file("pids.max"), before);
    let done = told("exec", &["--", "true"]);
    assert!(done.code != 0 && done.stdout.is_empty(), "{} {}", done.stdout, done.stderr);
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn what_an_owner_marks_as_ours_is_no_leftover_of_roots() {
    let (sandbox, directories) = delegated("mark");
    let mark = format!("store:{}", sandbox.state_dir().display());
    let mut is_marked = false;
    for directory in &directories {
        let inner = directory.join("inner");
        finish({
            let mut made = as_user("mkdir");
            made.arg(&inner);
            made
        })
        .exits(0);
        let inner = File::open(&inner).unwrap();
        // v2 alone has such attributes.
        is_marked |=
            rustix::fs::fsetxattr(&inner, "user.ringfence", mark.as_bytes(), XattrFlags::empty()).is_ok();
    }
    assert!(is_marked || hierarchies().iter().all(|hierarchy| !hierarchy.is_v2));
    for apply in [&["gc"] as &[_], &["gc", "--apply", "--kill"]] {
        let found = finish(sandbox.ringfence(&[&["-o", "json"], apply].concat())).exits(0).json();
        assert_eq!(found, serde_json::json!([]), "{apply:?}");
    }
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn nobody_can_put_a_symbolic_link_into_a_cgroup() {
    let (sandbox, directories) = delegated("link");
    for directory in &directories {
        let linked = symlink("/etc", directory.join("link"));
        assert!(linked.is_err(), "{directory:?}");
    }
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn a_state_directory_that_others_can_write_to_is_refused_by_every_command() {
    let sandbox = Sandbox::named("forged");
    let state = sandbox.state_dir();
    fs::create_dir(&state).unwrap();
    let link = sandbox.scratch.path().join("link");
    symlink(&state, &link).unwrap();
    let refused = |directory: &Path, because: &str| {
        let verbs: [&[&str]; 6] = [
            &["create", &sandbox.id],
            &["rm", &sandbox.id],
            &["set", &sandbox.id, "--pids", "7"],
            &["gc"],
            &["ls"],
            &["show", &sandbox.id],
        ];
        for verb in verbs {
            let mut command = support::ringfence();
            command.args(["-o", "json", "--state-dir"]).arg(directory).args(verb);
            let error = finish(command).exits(1).error();
            assert_eq!(error["kind"], "state", "{verb:?}: {error}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(because) && message.contains("--state-dir"), "{verb:?}: {message}");
        }
        assert!(sandbox.directories().is_empty());
    };
    for mode in [0o777, 0o1777, 0o770, 0o702] {
        fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
        refused(&state, "others may write");
    }
    refused(&link, "is a symbolic link");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&state, Some(USER), Some(USER)).unwrap();
    refused(&state, "belongs to the user 1000");
    refused(&link, "is a symbolic link");
    chown(&state, Some(0), Some(0)).unwrap();
    sandbox.create(&[]);
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn state_directory_that_a_user_exchanges_all_the_time_is_never_obeyed() {
    let victim = Sandbox::named("exchanged-victim");
    let pid = victim.detached(&["--profile", "none"], "exec sleep 1000");
    let open = victim.scratch.path().join("open");
    fs::create_dir(&open).unwrap();
    for (directory, mode) in [(victim.scratch.path(), 0o711), (&open, 0o1777)] {
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
    }
    let (open, state) = (open.display(), open.join("state"));
    let real = victim.state_dir();
    let mut copy = Command::new("sh");
    copy.args([
        "-ec",
        &format!("cp -r {} {open}/forged; chown -R {USER}:{USER} {open}/forged", real.display()),
    ]);
    finish(copy).exits(0);
    // A forged record, a link to the true one, and nothing, in turn.
    let script = format!(
        "cd {open}; while :; do cp -r forged state; rm -rf state; ln -s {} state; rm -f state; done 2> /dev/null",
        real.display()
    );
    let attacker = Background(as_user("sh").args(["-c", &script]).spawn().unwrap());
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        let mut command = support::ringfence();
        command.args(["-o", "json", "--state-dir"]).arg(&state).args(["rm", &victim.id, "--kill"]);
        let done = finish(command);
        seen.insert(done.error()["kind"].as_str().unwrap_or_default().to_owned());
        assert_ne!(done.code, 0, "the user decides what root removes");
    }
    drop(attacker);
    assert!(is_alive(pid), "killed: {seen:?}");
    assert!(seen.contains("state"), "the exchange was never met: {seen:?}");
    victim.does("rm", &["--kill"]);
}

#[test]
fn a_state_that_names_what_is_not_the_sandboxs_reaches_none_of_it() {
    let sandbox = Sandbox::named("elsewhere");
    sandbox.create(&["--overhead", "nested"]);
    let file = sandbox.state_dir().join(format!("{}.json", sandbox.id));
    let text = fs::read_to_string(&file).unwrap();
    let whole: Value = serde_json::from_str(&text).unwrap();
    let victim = Background(Command::new("sleep").arg("1000").spawn().unwrap());

    let refused = |change: &dyn Fn(&mut Value), setting: &str| {
        let mut forged = whole.clone();
        change(&mut forged);
        fs::write(&file, forged.to_string()).unwrap();
        for (verb, args) in
            [("set", &["--pids", "9"] as &[_]), ("rm", &["--kill"]), ("show", &[]), ("kill", &[])]
        {
            let error = sandbox.attempt_json(verb, args).exits(1).error();
            assert_eq!(
                (&error["kind"], &error["setting"]),
                (&"state".into(), &setting.into()),
                "{verb}: {error}"
            );
        }
    };
    for path in ["..", "../..", "a/../../b", "/etc", "a//b", "a\0b"] {
        refused(&|state| state["cgroup"] = path.into(), "cgroup");
    }
    if whole["parts"].as_object().is_some_and(|parts| !parts.is_empty()) {
        refused(&|state| state["parts"]["vcpu"] = "system.slice".into(), "parts");
    }

    // Neither is a process killed that is called what keeps the scope, and is not inside.
    let mut forged = whole.clone();
    let stat = fs::read_to_string(format!("/proc/{}/stat", victim.0.id())).unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse::<u64>().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    forged["placeholder"] =
        serde_json::json!({"pid": victim.0.id(), "start_time": start, "boot_id": boot.trim()});
    fs::write(&file, forged.to_string()).unwrap();
    sandbox.does("rm", &["--drain"]);
    assert!(is_alive(victim.0.id()));
    // With systemd the true one was drained.
    if let Some(holder) = whole["placeholder"]["pid"].as_u64() {
        support::send(holder.try_into().unwrap(), rustix::process::Signal::KILL);
    }
}

#[test]
fn what_the_command_keeps_is_readable_by_its_user_alone_whatever_the_umask() {
    let sandbox = Sandbox::named("modes");
    let mut create = sandbox.command("create", &[support::hold(), &[]].concat());
    // SAFETY: umask(2) is async-signal-safe.
    unsafe {
        create.pre_exec(|| {
            rustix::process::umask(Mode::empty());
            Ok(())
        })
    };
    finish(create).exits(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&sandbox.state_dir()), 0o700);
    for entry in fs::read_dir(sandbox.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        // A link's mode means nothing: what is in it is readable by whoever reaches the directory.
        assert!(path.is_symlink() || mode(&path) == 0o600, "{path:?}");
    }
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn a_directory_that_is_no_cgroup_file_system_is_not_taken_for_one() {
    let sandbox = Sandbox::named("root");
    let fake = sandbox.scratch.path().join("cgroup");
    for below in ["", "memory", "pids"] {
        fs::create_dir_all(fake.join(below)).unwrap();
        File::create(fake.join(below).join("cgroup.procs")).unwrap();
    }
    let mut command = sandbox.ringfence(&["--cgroup-root"]);
    command.arg(&fake).args(["create", &sandbox.id, "--pids", "7"]);
    let done = finish(command);
    assert!(done.code != 0 && done.stderr.contains(fake.to_str().unwrap()), "{}", done.stderr);
    let made = rustix::fs::openat(CWD, fake.join("pids").join("ringfence"), OFlags::PATH, Mode::empty());
    assert!(made.is_err());
    assert!(
        rustix::fs::accessat(CWD, fake.join("ringfence"), rustix::fs::Access::EXISTS, AtFlags::empty())
            .is_err()
    );
}
