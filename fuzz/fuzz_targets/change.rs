//! A change of resources: a base and a change, merged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::{Profile, Resources, Version};
use ringfence_fuzz::{assert_refused, assert_round_trip, documents, parts, plans, settings, standard_hosts};

fuzz_target!(|data: &[u8]| {
    let [base, change] = parts(data).map(|part| documents::document(part).and_then(|text| read(&text)));
    let (Some(base), Some(change)) = (base, change) else { return };
    for version in [Version::V1, Version::V2] {
        // What is given by the name of a v2 file that a field is written to becomes the field.
        let [base, given] = [&base, &change].map(|resources| {
            let mut fields = resources.clone();
            fields.merge(&Resources::new(), version);
            fields
        });
        let mut merged = base.clone();
        merged.merge(&Resources::new(), version);
        assert_eq!(merged, base, "nothing changes nothing");
        merged.merge(&change, version);
        what_is_given_holds(&given, &merged);
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
        let as_before = Resources { unified: merged.unified.clone(), ..twice.clone() };
        assert_eq!(as_before, merged, "the same change again changes nothing");
        // Of the lines in files it may change how they are written, once.
        let mut thrice = twice.clone();
        thrice.merge(&without_devices, version);
        assert_eq!(thrice, twice, "the same change again changes nothing");
        for host in standard_hosts() {
            plans::are_sound(&host, &merged, Profile::Qemu, Default::default());
        }
    }
});

fn read(text: &str) -> Option<Resources> {
    Resources::from_oci_json(text).ok().map(|(resources, _)| resources)
}

fn what_is_given_holds(change: &Resources, merged: &Resources) {
    let after = settings(merged);
    for (setting, given) in settings(change) {
        // Device rules are added; files with a line for each device are merged by line.
        if setting != "devices" && !setting.starts_with("unified.") {
            assert_eq!(after.get(&setting), Some(&given), "{setting}");
        }
    }
}
