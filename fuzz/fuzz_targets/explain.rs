//! What limits come to, by the files of a cgroup and its ancestors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::explain::Key;
use ringfence::fuzzing::explain;
use ringfence::{Error, Version};
use ringfence_fuzz::assert_refused;

// A key, then the files of each level from the root down, with a NUL before each; one that says `-` is not there.
fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let key: Key = match text.parse() {
        Ok(key) => key,
        Err(error) => {
            assert_refused(&error);
            let names: Vec<String> = Key::names().collect();
            let picked = usize::from(data.first().copied().unwrap_or_default()) % names.len();
            match names[picked].replace('*', "2MB").parse::<Key>() {
                Ok(key) => key,
                Err::<_, Error>(_) => return,
            }
        }
    };
    let files: Vec<_> = parts.map(|part| Some(part.to_vec()).filter(|part| part != b"-")).collect();
    for (version, count) in [(Version::V1, 1), (Version::V1, 4), (Version::V1, 2), (Version::V2, 1)] {
        let levels: Vec<_> = files.chunks(count).map(<[_]>::to_vec).collect();
        let Some((effective, own)) = explain(&key, version, &levels) else { continue };
        assert_eq!(own.len(), levels.len());
        for (value, level) in own.iter().zip(&levels) {
            assert_eq!(value.is_some(), level.first().is_some_and(Option::is_some), "{key}");
        }
        let json = serde_json::to_string(&(&effective, &own)).expect("JSON");
        assert!(!json.is_empty() && effective.to_string().len() < 1 << 20);
        // What holds, holds because some level says so, or because none says anything.
        if own.iter().all(Option::is_none) {
            assert_eq!(explain(&key, version, &[]).expect("nothing is wrong with nothing").0, effective);
        }
    }
});
