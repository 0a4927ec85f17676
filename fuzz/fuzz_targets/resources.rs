//! OCI documents: `LinuxResources` and `config.json`, what is reported of them, and what an error blames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::LinuxResources;
use ringfence::resources::SpecFile;
use ringfence::{Error, Report, Resources};
use ringfence_fuzz::{alone, assert_refused, assert_round_trip, has_duplicate_keys, places};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let document: Option<Value> = serde_json::from_str(text).ok();
    let plain = document.as_ref().filter(|_| !has_duplicate_keys(text) && !text.contains('\\'));
    let read = Resources::from_oci_json(text);
    match &read {
        Ok((resources, report)) => {
            let document = document.as_ref().expect("what was read is JSON");
            match resources.validate() {
                Ok(()) => assert_round_trip(resources),
                Err(error) => {
                    assert_refused(&error);
                    assert!(error.setting().is_some() && error.value().is_some(), "{error}");
                }
            }
            if plain.is_some() {
                everything_reported_is_there(report, document);
            }
        }
        Err(error) => {
            assert_refused(error);
            assert!(error.message().contains(" at line "), "{error}");
            if let Some(document) = plain {
                the_blamed_field_is_to_blame(error, document);
            }
        }
    }
    if document.is_some() {
        a_configuration_reads_the_same(text, &read);
        oci_spec_reads_the_same(text, &read);
    }
    match SpecFile::from_oci_json(text) {
        Ok((spec, _)) if spec.resources.validate().is_ok() => assert_round_trip(&spec.resources),
        Ok(_) => {}
        Err(error) => assert_refused(&error),
    }
});

fn everything_reported_is_there(report: &Report, document: &Value) {
    let places = places(document);
    for line in report.lines() {
        let there =
            |(place, value): &(String, &Value)| *place == line.setting && value.to_string() == line.value;
        assert!(places.iter().any(there), "{} = {} is not in {document}", line.setting, line.value);
    }
}

/// The field has the value that the error says, and is refused also when it is the only one.
fn the_blamed_field_is_to_blame(error: &Error, document: &Value) {
    let Some(setting) = error.setting() else {
        return assert!(!document.is_object(), "{error} names no field of {document}");
    };
    let places = places(document);
    let Some((_, blamed)) = places.iter().find(|(place, _)| place == setting) else {
        panic!("{error}: no such field in {document}");
    };
    if let Some(value) = error.value() {
        let given = blamed.as_str().map_or_else(|| blamed.to_string(), str::to_owned);
        assert_eq!(value, given, "{error}");
    }
    let alone = alone(document, setting).expect("it is there").to_string();
    assert!(Resources::from_oci_json(&alone).is_err(), "{error} of {document}, but {alone} is accepted");
}

fn a_configuration_reads_the_same(text: &str, read: &Result<(Resources, Report), Error>) {
    let config = format!(r#"{{"linux": {{"resources": {text}}}}}"#);
    // One level deeper can be one level too deep.
    if serde_json::from_str::<Value>(&config).is_err() {
        return;
    }
    match (SpecFile::from_oci_json(&config), read) {
        (Ok((spec, report)), Ok(read)) => assert_eq!((&spec.resources, &report), (&read.0, &read.1)),
        (Err(error), Err(read)) => {
            let inside = read.setting().map_or(String::new(), |setting| format!(".{setting}"));
            assert_eq!(error.setting(), Some(&*format!("linux.resources{inside}")), "{error}, {read}");
        }
        (spec, read) => panic!("{spec:?} is not {read:?}"),
    }
}

/// Where the `oci-spec` crate takes a document too, it means the same.
fn oci_spec_reads_the_same(text: &str, read: &Result<(Resources, Report), Error>) {
    let (Ok(theirs), Ok((ours, _))) = (serde_json::from_str::<LinuxResources>(text), read) else { return };
    let Ok((theirs, _)) = Resources::from_oci(&theirs) else { return };
    let value = |resources: &Resources| -> Value {
        serde_json::from_str(&resources.to_oci_json().expect("JSON")).expect("JSON")
    };
    let (ours, theirs) = (value(ours), value(&theirs));
    let places = places(&ours);
    // What OCI has not (`cpu.weight`) is lost on their way.
    for (place, value) in ringfence_fuzz::places(&theirs) {
        // They take an absent limit of tasks for 0, which OCI has as a value.
        if place.starts_with("pids") {
            continue;
        }
        let same =
            |(other, there): &(String, &Value)| *other == place && (value.is_object() || *there == value);
        assert!(places.iter().any(same), "{place} = {value} is not in {ours}");
    }
}
