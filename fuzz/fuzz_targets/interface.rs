//! Interface files: how what is written to them is merged, compared and taken back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::fuzzing::interface::{holds, is_keyed, merged, restoring};
use ringfence_fuzz::parts;

fuzz_target!(|data: &[u8]| {
    let [file, written, now] = parts(data).map(String::from_utf8_lossy);
    let (written, now) = (sound_lines(&written), sound_lines(&now));
    let (written, now) = (written.as_str(), now.as_str());
    let file = match FILES.iter().find(|known| **known == file) {
        Some(known) => known,
        None => FILES[usize::from(data.first().copied().unwrap_or_default()) % FILES.len()],
    };
    let after = merged(file, now, written);
    assert_eq!(merged(file, &after, written), after, "{file}: written twice");
    let mut back = after.clone();
    for line in restoring(file, written, now) {
        assert!(!is_keyed(file) || !line.trim().contains('\n'), "{file} takes one line at a time");
        back = merged(file, &back, &line);
    }
    if is_keyed(file) {
        assert!(
            holds(file, written, &after, 4096),
            "{file}: {after:?} is not what {written:?} made of {now:?}"
        );
        assert!(holds(file, now, &back, 4096), "{file}: {back:?} is not {now:?}");
    } else if !file.starts_with("cpuset") && !file.contains("oom_control") {
        assert_eq!(after, written);
        assert!(now.is_empty() || holds(file, now, &back, 4096), "{file}: {back:?} is not {now:?}");
    }
});

/// Those that some kernel could write: words, of which all behind the first are `NAME=VALUE`, or one is a value.
fn sound_lines(text: &str) -> String {
    let is_sound = |line: &&str| {
        let mut words = line.split_ascii_whitespace();
        let key = words.next().is_some_and(|key| !key.contains('='));
        let rest: Vec<_> = words.map(|word| word.split_once('=')).collect();
        let named = |word: &Option<(&str, &str)>| {
            word.is_some_and(|(name, value)| !name.is_empty() && !value.is_empty())
        };
        key && (matches!(rest[..], [] | [None]) || rest.iter().all(named))
    };
    text.lines().map(str::trim).filter(is_sound).collect::<Vec<_>>().join("\n")
}

const FILES: [&str; 18] = [
    "io.max",
    "io.latency",
    "io.weight",
    "io.bfq.weight",
    "rdma.max",
    "misc.max",
    "net_prio.ifpriomap",
    "blkio.throttle.read_bps_device",
    "blkio.bfq.weight_device",
    "blkio.weight_device",
    "cpuset.cpus",
    "cpuset.cpus.partition",
    "memory.oom_control",
    "memory.max",
    "memory.limit_in_bytes",
    "cpu.max",
    "pids.max",
    "hugetlb.2MB.max",
];
