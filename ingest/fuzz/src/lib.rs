//! What the fuzz targets share. A panic inside a decoder is contained by the library and would
//! be a skip; libFuzzer's hook ends the process before that, so here it is a finding.

use std::io::Write;
use std::sync::{Arc, LazyLock};

use futures::StreamExt;
use lapflow_ingest::{Decode, IngestConfig, Limits, Source, decode, decode_to_cover};
use tokio::runtime::Runtime;

/// Images with more pixels are refused, so that a run is not spent on clearing memory.
const PIXELS_MAX: u64 = 1 << 18;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// Decodes `magic` and what follows of `bytes`, whole and reduced.
pub fn image(magic: &[u8], bytes: &[u8]) {
    let mut content = bytes.to_vec();
    let kept = magic.len().min(content.len());
    content[..kept].copy_from_slice(&magic[..kept]);
    let limits = Limits { pixels_max: PIXELS_MAX };
    let Ok(whole) = decode(&content, &limits) else { return };
    assert_eq!(whole.pixels.len(), 3 * whole.width as usize * whole.height as usize);
    let reduced = decode_to_cover(&content, &limits, 16).expect("it decoded whole");
    assert_eq!(reduced.pixels.len(), 3 * reduced.width as usize * reduced.height as usize);
    assert!(reduced.width.min(reduced.height) >= 16.min(whole.width).min(whole.height));
}

/// Opens `bytes` as an archive with the given extension and reads every image of it.
pub fn archive(extension: &str, bytes: &[u8]) {
    let mut file = tempfile::Builder::new().suffix(extension).tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    let config = IngestConfig {
        source: file.path().display().to_string(),
        size: 8,
        decode: Decode::Fast,
        skip_fraction_max: 1.0,
        threads: 1,
        pixels_max: PIXELS_MAX,
        bytes_max: 1 << 20,
        entries_max: 1000,
        ..IngestConfig::default()
    };
    RUNTIME.block_on(async {
        let Ok(source) = Source::open(&config).await else { return };
        let source = Arc::new(source);
        let order: Vec<usize> = (0..source.entries().len()).collect();
        let outcomes: Vec<_> = source.stream(order.clone()).collect().await;
        assert_eq!(outcomes.len(), order.len());
        assert!(outcomes.iter().all(Result::is_ok));
    });
}
