//! The XML of a domain of libvirt.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ringfence::{DeviceNumber, LibvirtDomain};
use ringfence_fuzz::{assert_refused, assert_round_trip};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let device = |path: &Path| path.starts_with("/dev").then_some(DeviceNumber { major: 8, minor: 0 });
    // A whole document, or what stands in one.
    let inside = format!("<domain>{text}</domain>");
    for text in [text, &inside] {
        let domain = match LibvirtDomain::from_xml(text, device) {
            Ok((domain, _)) => domain,
            Err(error) => {
                assert_refused(&error);
                continue;
            }
        };
        domain.resources.validate().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_round_trip(&domain.resources);
        let v2 = domain.into_v2_resources();
        let (files, report) = v2.to_v2().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(report.is_empty(), "{text}: {report}");
        assert_eq!(files.to_v2().expect("it is its own conversion").0, files);
        v2.to_systemd().unwrap_or_else(|error| panic!("{text}: {error}"));
    }
});
