//! The JSON of another machine's host.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::{Host, Limit, Profile, Resources};
use ringfence_fuzz::{assert_refused, plans};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let host = match Host::from_json(text) {
        Ok(host) => host,
        Err(error) => return assert_refused(&error),
    };
    let json = serde_json::to_string(&host).expect("JSON");
    assert_eq!(Host::from_json(&json).unwrap_or_else(|error| panic!("{json}: {error}")), host);
    let want = Resources::new()
        .memory_limit(256 << 20)
        .memory_swap(Limit::Max)
        .cpu_quota(50_000)
        .cpu_weight(50)
        .cpuset_cpus("0-1".parse().expect("a list"))
        .pids_limit(64);
    for profile in Profile::ALL {
        plans::are_sound(&host, &want, profile, Default::default());
    }
});
