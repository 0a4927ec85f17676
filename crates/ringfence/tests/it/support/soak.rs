//! How long a test goes on: in `make soak` as long as its subject needs, elsewhere as long as a gate can wait.

/// Whether this is `make soak`.
pub fn is_soak() -> bool {
    std::env::var_os("RINGFENCE_SOAK").is_some()
}

/// Whether this is a guest of the testbed, which may be emulated.
pub fn in_testbed() -> bool {
    std::env::var_os("RINGFENCE_TESTBED_MODE").is_some()
}

/// How often something is done: `whole` in a soak and on a machine, a fifth in a guest of the testbed.
pub fn times(whole: usize) -> usize {
    if is_soak() || !in_testbed() { whole } else { whole / 5 }
}

/// Every pair of states in a soak and on a machine, one pair in seven in a guest of the testbed.
pub fn pairs<T>(states: &[T]) -> impl Iterator<Item = (&T, &T)> {
    let all = states.iter().flat_map(move |one| states.iter().map(move |other| (one, other)));
    all.step_by(if is_soak() || !in_testbed() { 1 } else { 7 })
}
