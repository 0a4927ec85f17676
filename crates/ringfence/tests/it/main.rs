//! The library on a real kernel, in the cgroup mode of the machine that runs it. `testbed/testbed run` runs each module in
//! the modes and under the drivers that it names.

#[macro_use]
#[path = "support/testbed.rs"]
mod testbed;

// The counting allocator of the unit tests.
#[path = "../../src/allocations.rs"]
mod allocations;
mod support;

mod ancestors;
mod budget;
mod caller_inside;
mod changes;
mod claims;
mod crowd;
mod denied;
mod descriptors;
mod embedding;
mod events;
mod example;
mod library;
mod nested_controllers;
mod parts;
mod resources;
mod runtime;
mod separate;
mod stats;
mod storms;
mod threads;
mod units;
