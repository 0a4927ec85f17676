//! The start of the command: CPU time until it ends, as the kernel counts it, beside the smallest program of the system.
//!
//! `--version` is all that comes before a command looks at the machine; `ls` of a store that is empty looks at it.

use std::process::{Command, Stdio};

use crate::Result;
use crate::race::Spread;
use crate::table::Table;

const STARTS: usize = 301;

pub fn run() -> Result<()> {
    let Some(command) = std::env::var_os("RINGFENCE_BENCH_COMMAND") else {
        println!("## Start: RINGFENCE_BENCH_COMMAND names no command\n");
        return Ok(());
    };
    let state = std::env::temp_dir().join(format!("rf-bench-start-{}", std::process::id()));
    let version = || {
        let mut version = Command::new(&command);
        version.arg("--version");
        version
    };
    let list = || {
        let mut list = Command::new(&command);
        list.arg("--state-dir").arg(&state).arg("ls");
        list
    };
    let programs: [(&str, &dyn Fn() -> Command); 3] =
        [("true", &|| Command::new("true")), ("ringfence --version", &version), ("ringfence ls", &list)];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..STARTS {
        for ((_, program), times) in programs.iter().zip(&mut times) {
            times.push(cpu_time(program())?);
        }
    }
    println!("## Start ({} starts)\n", STARTS);
    let mut table = Table::new(&["program", "median", "quartiles", "least"]);
    for ((name, _), times) in programs.iter().zip(times) {
        let least = times.iter().copied().fold(f64::MAX, f64::min);
        let time = Spread::of(times);
        let quartiles = format!("{:.2}–{:.2}", time.low, time.high);
        table.row([
            (*name).to_owned(),
            format!("{:.2} ms", time.median),
            quartiles,
            format!("{least:.2} ms"),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Milliseconds, of user and system.
fn cpu_time(mut command: Command) -> Result<f64> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: a child of ours, and places to write to.
    if unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: zeroed, and filled by the kernel.
    let usage = unsafe { usage.assume_init() };
    let milliseconds = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    if status == 0 {
        Ok(milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime))
    } else {
        Err(format!("{command:?} ended with {status}").into())
    }
}
