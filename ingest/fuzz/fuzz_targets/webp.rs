#![no_main]
//! WebP decoding. The container's length is set right, or most inputs would end there.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let length = (bytes.len().saturating_sub(8) as u32).to_le_bytes();
    lapflow_ingest_fuzz::image(&[b"RIFF", &length[..], b"WEBP"].concat(), bytes);
});
