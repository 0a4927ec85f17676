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
    let json = resources.to_oci_json().expect("JSON");
    // A limit of 0 is none of OCI's.
    if !json.contains(":0") {
        assert_round_trip(&resources);
    }
    if let Ok((v2, _)) = resources.to_v2() {
        assert_eq!(v2.devices, resources.devices);
        let (again, report) = v2.to_v2().unwrap_or_else(|error| panic!("{v2:?}: {error}"));
        assert!(again == v2 && report.unsupported().count() == 0, "{v2:?} is not {again:?}\n{report}");
    }
    for host in standard_hosts() {
        plans::are_sound(&host, &resources, Profile::Default, Default::default());
    }
});
