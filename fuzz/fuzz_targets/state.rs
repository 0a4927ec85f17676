//! The state of a sandbox, from which another process restores it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::State;

fuzz_target!(|data: &[u8]| {
    let Ok(state) = serde_json::from_slice::<State>(data) else { return };
    let text = serde_json::to_string(&state).expect("a state is JSON");
    let again: State = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(again, state, "{text}");
    assert_eq!(serde_json::to_string(&again).expect("a state is JSON"), text);
    if ringfence::fuzzing::check_state(&state).is_ok() {
        let below = std::iter::once(&state.cgroup).chain(state.parts.values());
        assert!(below.clone().all(|path| !path.starts_with('/') && !path.split('/').any(|part| part == "..")), "{text}");
    }
});
