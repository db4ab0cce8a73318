//! Broken files, each with the exact words in which it is skipped.

use std::path::Path;

use lapflow_ingest::{Limits, SkipReason, decode};

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode");
    std::fs::read(folder.join(name)).expect("a golden")
}

/// The position right after the first occurrence of `pattern`.
fn after(bytes: &[u8], pattern: &[u8]) -> usize {
    let at = bytes.windows(pattern.len()).position(|window| window == pattern);
    at.expect("the pattern is there") + pattern.len()
}

fn patched(name: &str, marker: &[u8], offset: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = golden(name);
    let at = after(&bytes, marker) + offset;
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

/// A PNG whose header says `width` by `height`, with the right checksum.
fn png_of(width: u32, height: u32, color: u8) -> Vec<u8> {
    let mut bytes = golden("rgb.png");
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    bytes[25] = color;
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A PNG with a palette that is one byte short, with the right checksum.
fn png_of_short_palette() -> Vec<u8> {
    let mut bytes = golden("palette-transparent.png");
    let (name, content) = (after(&bytes, b"PLTE") - 4, after(&bytes, b"PLTE"));
    let length = u32::from_be_bytes(bytes[name - 4..name].try_into().unwrap()) as usize;
    bytes.remove(content + length - 1);
    bytes[name - 4..name].copy_from_slice(&(length as u32 - 1).to_be_bytes());
    let end = content + length - 1;
    let checksum = crc32(&bytes[name..end]);
    bytes[end..end + 4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// A baseline JPEG that claims another coding process.
fn with_frame_marker(marker: u8) -> Vec<u8> {
    let mut bytes = golden("rgb-420.jpg");
    let at = after(&bytes, &[0xff, 0xc0, 0, 17]) - 3;
    bytes[at] = marker;
    bytes
}

fn cut(name: &str, fraction: f64) -> Vec<u8> {
    let bytes = golden(name);
    bytes[..(bytes.len() as f64 * fraction) as usize].to_vec()
}

#[test]
fn every_broken_file_is_skipped_in_its_own_words() {
    const SOF: &[u8] = &[0xff, 0xc0, 0, 17];
    let scan = |name: &str| golden(name)[..after(&golden(name), &[0xff, 0xda])].to_vec();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "the file is empty"),
        (
            "text",
            b"<!DOCTYPE html>".to_vec(),
            "neither JPEG, PNG, WebP nor PPM: it starts with 3c21444f43545950, as a page of HTML or XML \
             does",
        ),
        (
            "gif",
            b"GIF89a\x01\0\x01\0".to_vec(),
            "neither JPEG, PNG, WebP nor PPM: it starts with 4749463839610100, as GIF does",
        ),
        ("one byte", vec![0xff], "neither JPEG, PNG, WebP nor PPM: it starts with ff"),
        ("jpeg start only", vec![0xff, 0xd8, 0xff], "truncated JPEG"),
        ("jpeg start and end", vec![0xff, 0xd8, 0xff, 0xd9], "corrupt JPEG: missing SOF marker"),
        ("jpeg without scan data", scan("rgb-420.jpg"), "truncated JPEG"),
        ("jpeg cut in its header", cut("rgb-420.jpg", 0.1), "truncated JPEG"),
        ("jpeg cut in its scan", cut("rgb-420.jpg", 0.8), "truncated JPEG"),
        ("gray jpeg cut in its scan", cut("gray.jpg", 0.9), "truncated JPEG"),
        ("progressive jpeg cut", cut("progressive.jpg", 0.7), "truncated JPEG"),
        ("cmyk jpeg cut", cut("cmyk.jpg", 0.7), "truncated JPEG"),
        (
            "jpeg of width 0",
            patched("rgb-420.jpg", SOF, 3, &[0, 0]),
            "corrupt JPEG: SOF width must not be 0",
        ),
        (
            "jpeg of 65535 squared",
            patched("rgb-420.jpg", SOF, 1, &[0xff; 4]),
            "65535x65535 pixels, more than pixels_max = 100000000",
        ),
        (
            "jpeg of 12 bits",
            patched("rgb-420.jpg", SOF, 0, &[12]),
            "unsupported JPEG: 12 bits a sample",
        ),
        (
            "jpeg of 7 components",
            patched("rgb-420.jpg", SOF, 5, &[7]),
            "corrupt JPEG: SOF component count must be 1-4, got 7",
        ),
        (
            "jpeg with sampling 0",
            patched("rgb-420.jpg", SOF, 7, &[0]),
            "corrupt JPEG: sampling factor must be 1-4, got 0x0",
        ),
        (
            "cmyk jpeg sampled in thirds",
            patched("cmyk.jpg", &[0xff, 0xc0, 0, 20], 10, &[0x31]),
            "unsupported JPEG: an ink sampled 3x1",
        ),
        (
            "lossless jpeg",
            with_frame_marker(0xc3),
            "unsupported JPEG: lossless predictor 0 (must be 1-7)",
        ),
        ("png cut in its header", golden("rgb.png")[..20].to_vec(), "truncated PNG"),
        ("png cut", cut("rgb.png", 0.6), "truncated PNG"),
        (
            "png of width 0",
            png_of(0, 5, 2),
            "corrupt PNG: Format error decoding Png: Invalid image dimensions",
        ),
        (
            "png of 2^31 squared",
            png_of(0x7fff_ffff, 0x7fff_ffff, 2),
            "unsupported PNG: Memory limit exceeded",
        ),
        (
            "png of 20000 squared",
            png_of(20_000, 20_000, 2),
            "20000x20000 pixels, more than pixels_max = 100000000",
        ),
        (
            "png of a short palette",
            png_of_short_palette(),
            "corrupt PNG: its palette has 119 bytes, which is no number of colours",
        ),
        (
            "png of colour type 5",
            png_of(45, 37, 5),
            "corrupt PNG: Format error decoding Png: Invalid color type 5.",
        ),
        (
            "png of greater height",
            png_of(45, 38, 2),
            "corrupt PNG: Format error decoding Png: IDAT or fDAT chunk does not have enough data for image.",
        ),
        (
            "png with a wrong checksum",
            patched("rgb.png", b"IDAT", 40, &[0, 1, 2]),
            "corrupt PNG: Format error decoding Png: Corrupt deflate stream. BadCodeLengthHuffmanTree",
        ),
        ("webp cut in its header", golden("lossy.webp")[..14].to_vec(), "truncated WebP"),
        (
            "webp cut",
            cut("lossy.webp", 0.5),
            "corrupt WebP: Format error decoding WebP: Corrupt bitstream",
        ),
        (
            "lossless webp cut",
            cut("lossless.webp", 0.5),
            "corrupt WebP: Format error decoding WebP: Corrupt bitstream",
        ),
        (
            "webp of an unknown chunk",
            patched("lossless.webp", b"WEBP", 0, b"ABCD"),
            "corrupt WebP: Format error decoding WebP: Invalid Chunk header: [41, 42, 43, 44]",
        ),
        ("ppm cut in its header", b"P6 2".to_vec(), "truncated PPM"),
        ("ppm cut", b"P6 2 2 255 abc".to_vec(), "truncated PPM"),
        ("ppm of words", b"P6 a".to_vec(), "corrupt PPM: its header is not three numbers"),
        ("ppm of width 0", b"P6 0 2 255 ".to_vec(), "corrupt PPM: its width or height is 0"),
        (
            "ppm of 16 bits",
            b"P6 1 1 65535 ab".to_vec(),
            "unsupported PPM: 65535 as the greatest level",
        ),
        (
            "ppm of 99999 squared",
            b"P6 99999 99999 255 ".to_vec(),
            "99999x99999 pixels, more than pixels_max = 100000000",
        ),
    ];
    let differ: Vec<String> = cases
        .into_iter()
        .filter_map(|(name, bytes, expected)| {
            let words = match decode(&bytes, &Limits::default()) {
                Ok(_) => "it decoded".to_owned(),
                Err(reason) => reason.to_string(),
            };
            (words != expected).then(|| format!("{name}: {words}"))
        })
        .collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
fn cuts_and_flipped_bits_never_panic_and_long_cuts_never_pass() {
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let limits = Limits { pixels_max: 1 << 20 };
    for name in
        ["rgb-420.jpg", "progressive.jpg", "cmyk.jpg", "rgb.png", "lossy.webp", "alpha.webp"]
    {
        let whole = golden(name);
        for _ in 0..200 {
            let kept = random(whole.len() * 9 / 10);
            assert!(decode(&whole[..kept], &limits).is_err(), "{name} cut to {kept} bytes");
            let mut flipped = whole.clone();
            for _ in 0..4 {
                let at = random(flipped.len());
                flipped[at] ^= 1 << random(8);
            }
            if let Err(SkipReason::Corrupt { detail, .. }) = decode(&flipped, &limits) {
                assert_ne!(detail, "the decoder panicked", "{name}");
            }
        }
    }
}
