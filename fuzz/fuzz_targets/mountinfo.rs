//! mountinfo, and the hierarchies that are assembled from it.
#![no_main]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ringfence::fuzzing::hierarchies;
use ringfence::{Mode, Version};
use ringfence_fuzz::parts;

fuzz_target!(|data: &[u8]| {
    let [text, root] = parts(data);
    let root = Path::new(OsStr::from_bytes(root));
    for root in [None, Some(root).filter(|root| root.is_absolute())] {
        let Ok((mode, hierarchies)) = hierarchies(text, root) else { continue };
        let unified = hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V2).count();
        let old = hierarchies.len() - unified;
        match mode {
            Mode::V1 => assert!(old > 0 && unified == 0),
            Mode::Hybrid => assert!(old > 0 && unified == 1),
            Mode::V2 => assert!(old == 0 && unified == 1),
        }
        assert!(hierarchies.iter().is_sorted_by_key(|hierarchy| hierarchy.version == Version::V2));
        let mut seen = BTreeSet::new();
        for hierarchy in &hierarchies {
            assert!(hierarchy.root.starts_with(root.unwrap_or(Path::new("/"))), "{hierarchy:?}");
            if hierarchy.version == Version::V1 {
                assert!(!hierarchy.controllers.is_empty() || hierarchy.name.is_some());
                let controllers: Vec<_> = hierarchy.controllers.iter().map(|it| it.v1_name()).collect();
                assert!(seen.insert((controllers, hierarchy.name.clone())), "{hierarchies:?}");
            }
        }
    }
});
