/// Where the testbed runs the tests of a module; it reads this from the source (`testbed/README.md` says what the words mean).
macro_rules! testbed {
    (
        $(modes: $modes:literal;)?
        $(drivers: $drivers:literal;)?
        $(gate: $gate:literal;)?
        $(soak: $soak:literal;)?
        $(guest: $guest:literal;)?
    ) => {};
}
