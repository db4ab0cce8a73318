#![no_main]
//! Listing and reading .parquet archives.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapflow_ingest_fuzz::archive(".parquet", bytes));
