//! Every file that statistics are made of on v1.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::Version;

fuzz_target!(|data: &[u8]| ringfence_fuzz::stats::record(Version::V1, data));
