//! System calls of each stage, counted by strace(1).

use std::collections::BTreeMap;
use std::process::Command;

use crate::Result;

/// A path that there is not: looking for it marks where a stage begins and ends.
pub const MARK: &str = "/ringfence-bench/";

/// The argument with which this program does what is to be traced.
pub const TRACED: &str = "--traced";

/// By manager and stage; nothing without strace.
pub fn calls() -> Result<BTreeMap<(String, String), usize>> {
    let file = std::env::temp_dir().join(format!("rf-bench-trace-{}", std::process::id()));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(&file);
    let Ok(status) = strace.arg(std::env::current_exe()?).arg(TRACED).status() else {
        return Ok(BTreeMap::new());
    };
    if !status.success() {
        return Err("what was traced failed".into());
    }
    let text = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    let mut counts = BTreeMap::new();
    let (mut current, mut executed) = (None, Vec::new());
    let first = text.split(' ').next().unwrap_or_default();
    for line in text.lines() {
        let (pid, call) = line.split_once(' ').unwrap_or_default();
        let call = call.trim_start();
        if let Some((_, mark)) = call.split_once(MARK) {
            let mut parts = mark.split(['/', '"']);
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let (key, what) = ((next(), next()), next());
            if what == "failed" {
                counts.remove(&key);
            }
            current = (what == "begin").then_some(key);
        } else if let Some(key) = &current {
            // A call that was interrupted has a second line. Memory is no matter of cgroups.
            let is_aside = ["brk(", "mmap(NULL, ", "munmap(", "mprotect(", "+++", "<..."];
            // The program's own calls are the same for everybody, as is the wait for its end.
            let is_the_programs = executed.contains(&pid) || call.starts_with("wait4(");
            if !is_the_programs && !is_aside.iter().any(|start| call.starts_with(start)) {
                *counts.entry(key.clone()).or_insert(0) += 1;
            }
        }
        // But for the first, which is that of the program itself.
        if pid != first && call.starts_with("execve(") {
            executed.push(pid);
        }
    }
    Ok(counts)
}
