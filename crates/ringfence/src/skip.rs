//! For tests: what cannot be tested here is said.

use std::io::Write as _;

/// Says why a test, or a part of it, is not done here, past the test harness's capture of output.
pub(crate) fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED: {}: {why}\n", thread.name().unwrap_or("?"));
    _ = std::io::stderr().write_all(line.as_bytes());
}
