#![no_main]
//! Listing and reading .tar archives.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapflow_ingest_fuzz::archive(".tar", bytes));
