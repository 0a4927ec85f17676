//! Plans, and what they are made of.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Sandbox, binary, finish};

const NOBODY: u32 = 65534;

/// Limits that every mode has files for.
pub fn resources() -> Value {
    json!({
        "memory": {"limit": 64 << 20, "reservation": (32 << 20) + 5},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0,1", "mems": "0"},
        "pids": {"limit": 100},
        "devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"},
            {"allow": false, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        ],
    })
}

/// A file that everybody may read, in a directory that everybody may enter.
pub fn public(sandbox: &Sandbox, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = sandbox.scratch.path().join(name);
    fs::write(&path, content).unwrap();
    for path in [sandbox.scratch.path(), &path] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    path
}

/// A copy of the command that everybody may execute. By another process, because a program that is open for writing in
/// one that forks at this moment is busy (ETXTBSY).
fn public_command(sandbox: &Sandbox) -> PathBuf {
    let path = sandbox.scratch.path().join("ringfence");
    let mut copy = Command::new("cp");
    copy.arg(binary()).arg(&path);
    finish(copy).exits(0);
    path
}

/// `ringfence -o json plan ID --host HOST --resources FILE` as a user who may do nothing.
pub fn plan_as_nobody(sandbox: &Sandbox, host: &str, resources: &Value) -> Value {
    plan_as_nobody_by("cgroupfs", sandbox, host, resources)
}

pub fn plan_as_nobody_by(driver: &str, sandbox: &Sandbox, host: &str, resources: &Value) -> Value {
    let program = public_command(sandbox);
    let resources = public(sandbox, "resources.json", resources.to_string());
    let mut command = Command::new(program);
    command.args([
        "--driver",
        driver,
        "-o",
        "json",
        "plan",
        &sandbox.id,
        "--profile",
        "none",
        "--host",
        host,
        "--resources",
    ]);
    command.arg(resources).uid(NOBODY).gid(NOBODY).current_dir("/").stdin(Stdio::null());
    command.env_clear().env("PATH", "/usr/bin:/bin");
    finish(command).exits(0).json()
}

pub fn steps(plan: &Value) -> &[Value] {
    plan["steps"].as_array().unwrap()
}

/// The steps that write, as (file, value).
pub fn writes(plan: &Value) -> Vec<(PathBuf, String)> {
    let writes = steps(plan).iter().filter(|step| step["op"] == "write");
    writes
        .map(|step| (step["path"].as_str().unwrap().into(), step["value"].as_str().unwrap().to_owned()))
        .collect()
}
