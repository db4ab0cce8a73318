//! Images a second through a source's stream: `throughput SOURCE SIZE THREADS [ROUNDS]`.

use std::sync::Arc;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use lapflow_ingest::{IngestConfig, Source};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, size, threads, rounds @ ..] = arguments.as_slice() else {
        return Err("usage: throughput SOURCE SIZE THREADS [ROUNDS]".into());
    };
    let config = IngestConfig {
        source: source.clone(),
        size: size.parse()?,
        threads: threads.parse()?,
        ..IngestConfig::default()
    };
    let source = Arc::new(Source::open(&config).await?);
    let count = source.entries().len();
    for _ in 0..rounds.first().map_or(Ok(1), |rounds| rounds.parse::<usize>())? {
        let start = Instant::now();
        let stream = source.stream((0..count).collect());
        let yielded = stream.boxed().try_fold(0_usize, async |sum, _| Ok(sum + 1)).await?;
        println!("{:.1}", yielded as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}
