//! The plan of a change, with anything in the files of the cgroup that is changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::Resources;
use ringfence::fuzzing::plan_change;
use ringfence_fuzz::{documents, expressible, parts, plans, rules, standard_hosts};

// The change, what was there before, device rules, and any number of `FILE\nCONTENTS`.
fuzz_target!(|data: &[u8]| {
    let [change, base, policy, files] = parts(data);
    let [change, base] = [change, base].map(|part| documents::document(part).and_then(|text| read(&text)));
    let (Some(change), Some(base)) = (change, base) else { return };
    let files: Vec<&[u8]> = files.split(|byte| *byte == 0).collect();
    let read = |name: &str| {
        let mut named =
            files.iter().filter_map(|file| file.strip_prefix(name.as_bytes())?.strip_prefix(b"\n"));
        let sum: usize = name.bytes().map(usize::from).sum();
        let contents = named.next().unwrap_or(files[sum % files.len()]);
        (contents != b"-").then(|| String::from_utf8_lossy(contents).trim_end().to_owned())
    };
    let policy = (!policy.is_empty()).then(|| expressible(&rules(policy)));
    // What is idle already needs no step.
    let mut limits = Resources { devices: Vec::new(), ..change.clone() };
    limits.cpu.idle = None;
    limits.unified.remove("cpu.idle");
    for host in standard_hosts() {
        if let Ok(plan) = plan_change(&host, &base, &change, policy.as_ref(), read) {
            plans::steps_are_below_the_hierarchies(&host, &plan);
            plans::nothing_is_dropped(&limits, &plan);
            let count = plan.steps().len() + plan.report().lines().len();
            assert!(plan.to_string().lines().count() >= count);
        }
    }
});

fn read(text: &str) -> Option<Resources> {
    Resources::from_oci_json(text).ok().map(|(resources, _)| resources)
}
