//! What a QMP monitor says, however it is cut; and names of threads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::ThreadNames;
use ringfence::fuzzing::{Monitor, sort_threads};
use ringfence_fuzz::{assert_refused, parts};

// What the monitor says, a pattern, and lines of names.
fuzz_target!(|data: &[u8]| {
    let [said, pattern, names] = parts(data);
    // Every message ends a line.
    let said = [said, b"\n"].concat();
    let at_once = Monitor::hear(&said, said.len());
    let in_pieces = Monitor::hear(&said, 7);
    match (&at_once, &in_pieces) {
        (Ok(at_once), Ok(in_pieces)) => assert_eq!(at_once, in_pieces),
        (Err(error), _) | (_, Err(error)) => assert!(!error.message().is_empty()),
    }
    for answer in at_once.into_iter().flat_map(|heard| heard.answers) {
        if let Ok((vcpus, _)) = &answer {
            assert!(vcpus.is_sorted_by(|one, other| one.index < other.index));
        }
        if let Ok((_, io_threads)) = &answer {
            assert!(io_threads.is_sorted_by(|one, other| one.id < other.id));
        }
    }

    let Ok(pattern) = str::from_utf8(pattern) else { return };
    let names_of = match pattern.parse::<ThreadNames>() {
        Ok(names_of) => names_of,
        Err(error) => return assert_refused(&error),
    };
    assert_eq!(names_of.to_string(), pattern);
    let threads: Vec<(u32, &[u8])> = (1..).zip(names.split(|byte| *byte == b'\n')).collect();
    let (vcpus, io_threads) = sort_threads(&names_of, &threads);
    assert!(vcpus.is_sorted_by(|one, other| one.index < other.index));
    let tids = vcpus.iter().map(|vcpu| vcpu.tid).chain(io_threads.iter().map(|thread| thread.tid));
    tids.for_each(|tid| assert!(threads.iter().any(|(known, _)| *known == tid)));
    for vcpu in vcpus {
        let (_, name) = threads.iter().find(|(tid, _)| *tid == vcpu.tid).expect("it is one of them");
        let text = String::from_utf8_lossy(name);
        assert!(text.contains(&vcpu.index.to_string()) || text == "ALL CPUs/TCG", "{text}");
    }
});
