//! A JPEG, PNG or WebP as PPM on standard output: `decode FILE [SHORT_SIDE]`. With a short side,
//! the decoder may halve the image while it keeps that much.

use std::error::Error;
use std::io::Write;

use lapflow_ingest::{Limits, decode, decode_to_cover};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, short_side @ ..] = arguments.as_slice() else {
        return Err("usage: decode FILE [SHORT_SIDE]".into());
    };
    let (bytes, limits) = (std::fs::read(file)?, Limits::default());
    let image = match short_side.first() {
        Some(short_side) => decode_to_cover(&bytes, &limits, short_side.parse()?)?,
        None => decode(&bytes, &limits)?,
    };
    let mut out = std::io::stdout().lock();
    write!(out, "P6\n{} {}\n255\n", image.width, image.height)?;
    Ok(out.write_all(&image.pixels)?)
}
