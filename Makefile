# Each target does its own set-up on a fresh Debian machine with cargo; as root, since cgroups and devices are.
.PHONY: demo test check host-test testbed-test matrix bench fuzz faults sanitize

# Boots a real Linux guest in QEMU, ring-fenced, and shows what that means.
demo:
	cargo build --release --locked -p ringfence-cli
	./demo/run target/release/ringfence

# Everything: format, lints, unit, integration and doc tests on this host, then the same tests in every cgroup mode.
test: check host-test testbed-test

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p ringfence --no-default-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc -p ringfence --no-deps --locked

host-test:
	command -v strace >/dev/null || apt-get install -y -qq --no-install-recommends strace
	./testbed/testbed guest-kernel
	cargo test --workspace --locked

testbed-test:
	./testbed/testbed build
	./testbed/testbed run

# Every test in all of the seven modes, under every driver that the mode has: by cgroupfs beside a systemd too.
matrix: MODES = trixie bw-unified bw-hybrid bw-legacy plain-v2 plain-v1 plain-hybrid
matrix:
	./testbed/testbed run --every-driver $(MODES:%=--mode %)

# Every parser, the planner and the eBPF compiler under libFuzzer, FUZZ_SECONDS (600) each; stops at the first crash.
fuzz:
	./fuzz/run

# The library with its unsafe code, the unit tests and those that spawn, under AddressSanitizer (which stable compilers have).
sanitize:
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" cargo test -p ringfence --locked --lib --test library --test threads \
		--test storms --target $$(rustc -vV | sed -n 's/^host: //p')

# Every system call of every operation fails in every plausible way, and the command is killed at each: on this host, and
# with cgroup v2 under User-mode Linux, where to be traced costs little. A table for each. Statically linked, so that no time
# goes into the loader.
faults: export CARGO_TARGET_DIR = $(CURDIR)/target/faults
faults: export CARGO_BUILD_TARGET = x86_64-unknown-linux-gnu
faults: export RUSTFLAGS = -C target-feature=+crt-static -C relocation-model=static
faults: export CARGO_PROFILE_DEV_DEBUG = false
faults: export CARGO_PROFILE_DEV_DEBUG_ASSERTIONS = false
faults:
	cargo test -p ringfence-cli --test faults --all-features --locked -- --ignored --nocapture every_call
	./testbed/testbed run --mode user-v2 --test faults --timeout 14400 -- --ignored --nocapture every_call

# Ringfence beside other cgroup managers and bare system calls, as ratios within one run, here and in a guest with cgroup v2.
bench:
	./bench/run
