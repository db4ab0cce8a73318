#![no_main]
//! PNG decoding.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapflow_ingest_fuzz::image(b"\x89PNG\r\n\x1a\n", bytes));
