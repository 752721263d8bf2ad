//! The load generator behind the `bench` binary.
