//! `LinuxResources` to a plan: on every standard host, and on hosts that lack something of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::{Host, Profile, Resources, Sandbox, SandboxConfig};
use ringfence_fuzz::{assert_round_trip, documents, parts, plans, standard_hosts};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let [document, lacks] = parts(data);
    let Some(document) = documents::document(document) else { return };
    let Ok((resources, report)) = Resources::from_oci_json(&document) else { return };
    let sound = resources.validate();
    if sound.is_ok() {
        assert_round_trip(&resources);
    }
    if let Ok((v2, _)) = resources.to_v2() {
        plans::is_its_own_conversion(&v2);
    }
    for host in standard_hosts() {
        if let Err(sound) = &sound {
            let config = SandboxConfig::new("vm1".parse().unwrap()).resources(resources.clone());
            let error = Sandbox::plan(&host, &config).expect_err("no host could take it");
            assert_eq!((error.setting(), error.value()), (sound.setting(), sound.value()));
            continue;
        }
        let host = if lacks.is_empty() { host } else { lacking(&host, lacks) };
        plans::are_sound(&host, &resources, Profile::Default, report.clone());
        plans::are_sound(&host, &resources, Profile::Kata, Default::default());
    }
});

/// The host without the capabilities and the controllers whose bits are set.
fn lacking(host: &Host, bits: &[u8]) -> Host {
    let mut json = serde_json::to_value(host).expect("JSON");
    let is_set = |at: usize| bits.get(at / 7).is_some_and(|byte| byte >> (at % 7) & 1 == 1);
    let capabilities = json["capabilities"].as_object_mut().expect("an object");
    let count = capabilities.len();
    for (at, (_, value)) in capabilities.iter_mut().enumerate() {
        *value = Value::Bool(value == &Value::Bool(true) && !is_set(at));
    }
    for hierarchy in json["hierarchies"].as_array_mut().expect("a list") {
        let controllers = hierarchy["controllers"].as_array_mut().expect("a list");
        controllers.retain(|name| {
            let place = ringfence::Controller::ALL.iter().position(|known| name == known.as_str());
            place.is_none_or(|place| !is_set(count + place))
        });
    }
    Host::from_json(&json.to_string()).expect("a host still")
}
