# Each target does its own set-up on a fresh Debian machine with cargo; as root, since cgroups and devices are.
.PHONY: demo test check unit-test matrix soak bench fuzz faults sanitize
.PHONY: check-format check-links check-dependencies check-lints check-features check-docs check-workspaces

# Boots a busy guest in QEMU, ring-fenced, and shows what that means: on this machine, or within a small guest where this machine
# makes no such sandbox. An ordinary user needs QEMU installed.
demo:
	cargo build --locked -p ringfence-cli
	./demo/run "$${CARGO_TARGET_DIR:-target}/debug/ringfence"

# Everything that a change has to pass: lints, unit tests, and each behaviour on a real kernel with cgroup v1 and with v2.
test: check unit-test
	./testbed/testbed run --gate

check: check-format check-links check-dependencies check-lints check-features check-docs check-workspaces

check-format:
	cargo fmt --all --check

# Files and headings that Markdown links to exist.
check-links:
	./tools/links

# Licences, duplicates, sources and advisories of the dependencies: deny.toml.
check-dependencies:
	./tools/deny $(DENY_OPTIONS)

# Undocumented public items and what is newer than the rust-version in Cargo.toml are errors, too.
check-lints:
	cargo clippy --workspace --all-targets --locked -- -D warnings

# The library without features, and with each feature alone.
FEATURES = $(shell sed -n '/^\[features\]/,/^$$/{/^default/d;s/^\([a-z0-9_-]*\) = .*/\1/p}' crates/ringfence/Cargo.toml)
check-features:
	cargo clippy -p ringfence --no-default-features --locked -- -D warnings
	for feature in $(FEATURES); do \
		cargo clippy -p ringfence --no-default-features --features $$feature --locked -- -D warnings || exit; done

# Links in the documentation lead somewhere, from public items to public ones alone.
check-docs:
	RUSTDOCFLAGS="-D warnings" cargo doc -p ringfence --no-deps --locked

# The benchmarks and the fuzz targets are workspaces of their own: they build with the library as it is.
check-workspaces:
	cargo check --manifest-path bench/Cargo.toml --all-targets --locked
	RUSTFLAGS="--cfg fuzzing" cargo check --manifest-path fuzz/Cargo.toml --locked

# What needs neither root nor cgroups.
unit-test:
	cargo test --workspace --locked --lib --bins -- --skip on_a_kernel --skip on_systemd
	cargo test --workspace --locked --doc

# Every test in every mode, under every driver that the mode has; writes testbed/matrix.md.
matrix:
	./testbed/testbed run --record testbed/matrix.md

# The long forms of the tests that have one: storms, crowds, histories, all pairs, a sample of faults.
soak:
	./testbed/testbed run --soak

# Every parser, the planner and the eBPF compiler under libFuzzer, FUZZ_SECONDS (600) each; stops at the first crash.
fuzz:
	./fuzz/run

# The library with its unsafe code, the unit tests and those that spawn, under AddressSanitizer (which stable compilers have).
sanitize: export RUSTC_BOOTSTRAP = 1
sanitize: export RUSTFLAGS = -Zsanitizer=address
sanitize: export CARGO_BUILD_TARGET = x86_64-unknown-linux-gnu
sanitize:
	cargo test -p ringfence --locked --lib
	cargo test -p ringfence --locked --test it -- library:: threads:: storms::

# Every system call of every operation fails in every plausible way, and the command is killed at each: on this host, and
# with cgroup v2 under User-mode Linux, where to be traced costs little. A table for each. Statically linked, so that no time
# goes into the loader.
faults: export CARGO_TARGET_DIR = $(CURDIR)/target/faults
faults: export CARGO_BUILD_TARGET = x86_64-unknown-linux-gnu
faults: export RUSTFLAGS = -C target-feature=+crt-static -C relocation-model=static
faults: export CARGO_PROFILE_DEV_DEBUG = false
faults: export CARGO_PROFILE_DEV_DEBUG_ASSERTIONS = false
faults:
	cargo test -p ringfence-cli --test it --locked -- --ignored --nocapture faults::every_call
	./testbed/testbed run --mode user-v2 --test faults --timeout 14400 -- --ignored --nocapture faults::every_call

# Ringfence beside other cgroup managers and bare system calls, as ratios within one run, here and in a guest with cgroup v2.
bench:
	./bench/run
