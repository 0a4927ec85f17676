//! `/proc/devices`, `/proc/PID/stat`, `/proc/PID/cgroup`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::fuzzing::{device_mapper_major, process_cgroups, process_stat};

fuzz_target!(|data: &[u8]| {
    process_stat(data);
    // A program can be called anything.
    let named = [b"7 (", data, b") S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 0 0\n"].concat();
    assert_eq!(process_stat(&named), Some(('S', 987_654)));

    let text = String::from_utf8_lossy(data);
    if let Some(major) = device_mapper_major(&text) {
        assert!(text.contains("device-mapper") && text.contains(&major.to_string()));
    }
    // A name with a newline is none that a driver can have.
    let name = text.replace(['\n', '\r'], " ");
    let devices = format!(
        "Character devices:\n  1 {name}\n\nBlock devices:\n  7 loop\n252 device-mapper\n253 {name}\n"
    );
    if !name.contains("Block devices:") {
        assert_eq!(device_mapper_major(&devices), Some(252));
    }

    for (controllers, path) in process_cgroups(&text) {
        assert!(!controllers.contains(':') && text.contains(&format!(":{controllers}:{path}")));
    }
    // A cgroup cannot have a newline in its name, but anything else.
    assert_eq!(
        process_cgroups(&format!("4:cpu,cpuacct:/{name}\n")),
        [("cpu,cpuacct".to_owned(), format!("/{name}"))]
    );
});
