//! System calls of each stage.

use std::collections::BTreeMap;
use std::process::Command;

use crate::Result;
use crate::strace::{Told, told, trace};

/// The argument with which this program does what is to be traced.
pub const TRACED: &str = "--traced";

/// By manager and stage; nothing without strace(1).
pub fn count() -> Result<BTreeMap<(String, String), usize>> {
    let mut program = Command::new(std::env::current_exe()?);
    let mut counts = BTreeMap::new();
    let Some(text) = trace(program.arg(TRACED))? else { return Ok(counts) };
    let mut current = None;
    for line in told(&text) {
        match (line, &current) {
            (Told::Mark(mark), _) => {
                let mut parts = mark.split(['/', '"']);
                let mut next = || parts.next().unwrap_or_default().to_owned();
                let (key, what) = ((next(), next()), next());
                if what == "failed" {
                    counts.remove(&key);
                }
                current = (what == "begin").then_some(key);
            }
            (Told::Call(call), Some(key)) => {
                // Memory is no matter of cgroups; the wait for the end of the program is the same for everybody.
                let is_aside =
                    ["mmap(NULL, ", "munmap(", "wait4("].iter().any(|start| call.starts_with(start));
                if !is_aside {
                    *counts.entry(key.clone()).or_insert(0) += 1;
                }
            }
            _ => {}
        }
    }
    Ok(counts)
}
