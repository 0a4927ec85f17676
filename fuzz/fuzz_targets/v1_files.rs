//! Limits out of v1's interface files, and what they come to on v2.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::{Profile, Resources};
use ringfence_fuzz::{assert_refused, assert_round_trip, plans, standard_hosts};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let (resources, report) = match Resources::from_v1_files(text) {
        Ok(read) => read,
        Err(error) => return assert_refused(&error),
    };
    assert_eq!(report.unsupported().count(), 0, "{report}");
    if resources.validate().is_err() {
        return;
    }
    assert_round_trip(&resources);
    if let Ok((v2, _)) = resources.to_v2() {
        assert_eq!(v2.devices, resources.devices);
        plans::is_its_own_conversion(&v2);
    }
    for host in standard_hosts() {
        plans::are_sound(&host, &resources, Profile::Default, Default::default());
    }
});
