//! A cgroup manager for virtual containers.
