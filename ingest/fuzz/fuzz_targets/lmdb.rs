#![no_main]
//! Listing and reading LMDB environments.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapflow_ingest_fuzz::archive(".mdb", bytes));
