//! The `lapflow` binary.

fn main() {}
