#![no_main]
//! Listing and reading .zip archives.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapflow_ingest_fuzz::archive(".zip", bytes));
