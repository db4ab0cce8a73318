#![no_main]
//! JPEG decoding.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapflow_ingest_fuzz::image(b"\xff\xd8\xff", bytes));
