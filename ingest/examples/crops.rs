//! Cropped PNGs of a source, as `lapflow ingest` writes them: `crops SOURCE SIZE OUT [exact|fast]`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lapflow_ingest::{Decode, IngestConfig, Source, export};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, size, out, mode @ ..] = arguments.as_slice() else {
        return Err("usage: crops SOURCE SIZE OUT [exact|fast]".into());
    };
    let decode = match mode.first().map(String::as_str) {
        Some("fast") => Decode::Fast,
        _ => Decode::Exact,
    };
    let config = IngestConfig {
        source: source.clone(),
        size: size.parse()?,
        decode,
        ..IngestConfig::default()
    };
    let source = Arc::new(Source::open(&config).await?);
    let exported = export(&source, Path::new(out), |_, _| ControlFlow::Continue(())).await?;
    println!("{} written, {} skipped", exported.written, exported.skips.len());
    Ok(())
}
