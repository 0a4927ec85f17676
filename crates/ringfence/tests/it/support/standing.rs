//! Where a process that does not come to an end stands.

use std::fs;

/// What each thread of a process and of its descendants waits for in the kernel.
pub fn where_it_stands(pid: u32) -> String {
    let mut told = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, call, stack) = (read("comm"), read("syscall"), read("stack"));
        told += &format!("{pid} {}: in {}\n{stack}", name.trim(), call.trim());
        told.extend(
            read("children").split_whitespace().filter_map(|it| it.parse().ok()).map(where_it_stands),
        );
    }
    told
}
