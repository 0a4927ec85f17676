//! System calls of a program between marks of its own, as strace(1) tells them.

use std::io;
use std::process::Command;

/// A path that there is not: to look for it, with words behind it, is a mark.
pub const MARK: &str = "/ringfence-trace/";

/// What a line tells.
pub enum Told<'a> {
    /// The words of a mark.
    Mark(&'a str),
    /// A call of the program, or of a process that it forked until that has executed another.
    Call(&'a str),
}

/// What strace says of the program; nothing where there is no strace.
pub fn trace(program: &Command) -> io::Result<Option<String>> {
    let file = std::env::temp_dir().join(format!("rf-trace-{}", std::process::id()));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-s", "48", "-e", "signal=none", "-o"]).arg(&file);
    strace.arg(program.get_program()).args(program.get_args());
    strace.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let done = match strace.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        done => done?,
    };
    let text = std::fs::read_to_string(&file);
    _ = std::fs::remove_file(&file);
    if !done.status.success() {
        let said = [done.stdout, done.stderr].concat();
        return Err(io::Error::other(format!("what is traced failed: {}", String::from_utf8_lossy(&said))));
    }
    text.map(Some)
}

/// The lines of it, without those for memory, and without the second line of a call that was interrupted.
pub fn told(text: &str) -> impl Iterator<Item = Told<'_>> {
    let first = text.split(' ').next().unwrap_or_default();
    let mut executed = Vec::new();
    text.lines().filter_map(move |line| {
        let (pid, call) = line.split_once(' ')?;
        let call = call.trim_start();
        if let Some((_, words)) = call.split_once(MARK) {
            return Some(Told::Mark(words));
        }
        let is_the_programs = executed.contains(&pid);
        // But for the first, which is that of the program itself.
        if pid != first && call.starts_with("execve(") {
            executed.push(pid);
        }
        let is_aside = ["brk(", "mprotect(", "+++", "<..."].iter().any(|start| call.starts_with(start));
        (!is_the_programs && !is_aside).then_some(Told::Call(call))
    })
}
