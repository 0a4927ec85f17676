//! A change of resources: a base and a change, merged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::{Profile, Resources, Version};
use ringfence_fuzz::{assert_refused, assert_round_trip, parts, places, plans, standard_hosts};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let [base, change] = parts(data).map(|part| str::from_utf8(part).ok().and_then(read));
    let (Some(base), Some(change)) = (base, change) else { return };
    for version in [Version::V1, Version::V2] {
        let mut merged = base.clone();
        merged.merge(&Resources::new(), version);
        assert_eq!(merged, base, "nothing changes nothing");
        merged.merge(&change, version);
        what_is_given_holds(&change, &merged);
        if base.validate().is_err() || change.validate().is_err() {
            continue;
        }
        if let Err(error) = merged.validate() {
            // One half that was given contradicts another that stays.
            assert_refused(&error);
            assert!(error.setting().is_some());
            continue;
        }
        assert_round_trip(&merged);
        let mut twice = merged.clone();
        let without_devices = Resources { devices: Vec::new(), ..change.clone() };
        twice.merge(&without_devices, version);
        assert_eq!(twice, merged, "the same change again changes nothing");
        for host in standard_hosts() {
            plans::are_sound(&host, &merged, Profile::Qemu, Default::default());
        }
    }
});

fn read(text: &str) -> Option<Resources> {
    Resources::from_oci_json(text).ok().map(|(resources, _)| resources)
}

fn what_is_given_holds(change: &Resources, merged: &Resources) {
    let value = |resources: &Resources| -> Value {
        serde_json::from_str(&resources.to_oci_json().expect("JSON")).expect("JSON")
    };
    let (change, merged) = (value(change), value(merged));
    let places_after = places(&merged);
    for (place, given) in places(&change) {
        // Lists have ways of their own.
        if given.is_object() || given.is_array() || place.contains('[') {
            continue;
        }
        assert!(places_after.contains(&(place.clone(), given)), "{place} = {given} is not in {merged}");
    }
}
