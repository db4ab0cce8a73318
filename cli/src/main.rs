//! The `lapflow` binary.
//!
//! Unfinished: so far it only draws the demo's image set into the folder it is given.

mod demo;
#[cfg_attr(not(test), expect(dead_code, reason = "no command shows a run yet"))]
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let out: PathBuf = std::env::args_os().nth(1).context("usage: lapflow FOLDER")?.into();
    let count = demo::dataset::write_set(&out, 0..500, 64)?;
    println!("{count} images in {}", out.display());
    Ok(())
}
