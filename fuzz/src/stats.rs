//! Statistics: parts divided by NUL, each `FILE\nCONTENTS`. Where there is no such file, its first byte picks one.

use ringfence::Version;
use ringfence::fuzzing::{clear_stats, stats_files};
use ringfence::stats::Stats;
use serde_json::Value;

pub fn record(version: Version, data: &[u8]) {
    let files: Vec<(String, &[u8])> = data.split(|byte| *byte == 0).map(|part| file(version, part)).collect();
    let mut stats = Stats::default();
    let record = |stats: &mut Stats| {
        for (name, contents) in &files {
            assert!(stats.record(version, name, contents), "{name} is not known");
        }
    };
    record(&mut stats);
    let json = serde_json::to_value(&stats).expect("JSON");
    has_no_null(&json);
    let again: Stats = serde_json::from_value(json.clone()).expect("what was written");
    assert_eq!(again, stats);

    // A reader's next sample begins with nothing of the one before.
    clear_stats(&mut stats);
    assert_eq!(stats, Stats::default());
    record(&mut stats);
    assert_eq!(serde_json::to_value(&stats).expect("JSON"), json);
}

fn file(version: Version, part: &[u8]) -> (String, &[u8]) {
    let line = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
    let (name, contents) = part.split_at(line);
    if let Ok(name) = str::from_utf8(name)
        && Stats::default().record(version, name, b"")
    {
        return (name.to_owned(), contents.get(1..).unwrap_or_default());
    }
    let names: Vec<_> = stats_files(version).collect();
    let (first, contents) = part.split_first().unwrap_or((&0, &[]));
    (names[usize::from(*first) % names.len()].replace('*', "2MB"), contents)
}

/// What is absent is left out, and every number is one that JSON can say.
fn has_no_null(value: &Value) {
    match value {
        Value::Null => panic!("null"),
        Value::Array(items) => items.iter().for_each(has_no_null),
        Value::Object(fields) => fields.values().for_each(has_no_null),
        _ => {}
    }
}
