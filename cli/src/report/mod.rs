//! Pictures and pages that show a run.

pub mod grid;
