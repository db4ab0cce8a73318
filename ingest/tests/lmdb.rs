//! LMDB environments; `golden/generate_lmdb.py` made the one here with liblmdb.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use lapflow_ingest::{Crop, IngestConfig, Item, Outcome, Source};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lmdb/faces.lmdb")
}

async fn open(source: &str) -> Result<Arc<Source>, String> {
    let config = IngestConfig {
        source: source.to_owned(),
        size: 4,
        crop: Crop::Resize,
        skip_fraction_max: 1.0,
        ..IngestConfig::default()
    };
    Source::open(&config).await.map(Arc::new).map_err(|error| error.to_string())
}

async fn read(source: &Arc<Source>) -> (Vec<Item>, usize) {
    let outcomes: Vec<_> = source.stream((0..source.entries().len()).collect()).collect().await;
    let (mut items, mut skips) = (Vec::new(), 0);
    for outcome in outcomes {
        match outcome.expect("the job goes on") {
            Outcome::Image(item) => items.push(item),
            Outcome::Skip(_) => skips += 1,
        }
    }
    (items, skips)
}

#[tokio::test]
async fn every_value_of_an_environment_is_an_image() {
    let folder = golden().display().to_string();
    // A folder, its file, and the same through an object store.
    for (source, prefix) in [
        (folder.clone(), "data.mdb/"),
        (format!("{folder}/data.mdb"), ""),
        (format!("file://{folder}/data.mdb"), ""),
    ] {
        let (items, skips) = read(&open(&source).await.expect("opens")).await;
        assert_eq!((items.len(), skips), (132, 0), "{source}");
        for item in items {
            let number: u8 = item.key.strip_prefix(prefix).expect(prefix).parse().expect(&item.key);
            if number == 130 {
                assert_eq!((item.width, item.height), (40, 40));
                continue;
            }
            let pixels = (0..16).flat_map(|at| [number, at % 4, at / 4]).collect::<Vec<u8>>();
            assert!(item.image.pixels == pixels, "{source} {number}");
        }
    }
}

#[tokio::test]
async fn broken_environments_are_named_and_never_followed_out_of_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("faces.mdb");
    let name = path.display().to_string();
    let whole = std::fs::read(golden().join("data.mdb")).expect("a golden");
    let opened = async |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("a file");
        open(&name).await
    };
    let error = async |bytes: &[u8]| opened(bytes).await.err().expect("refused");

    let mut other_version = whole.clone();
    other_version[20] = 9;
    assert_eq!(
        error(&other_version).await,
        format!("source {name}: it is not an LMDB file of version 1, 64 bits, little-endian")
    );
    assert_eq!(
        error(&whole[..3 * 4096]).await,
        format!("source {name}: it points outside of itself")
    );
    // The root of either state, and so a page of its own tree, is a meta page.
    let mut no_tree = whole.clone();
    for meta in [0, 4096] {
        no_tree[meta + 128..meta + 136].fill(0);
    }
    assert_eq!(
        error(&no_tree).await,
        format!("source {name}: a page of its tree is neither branch nor leaf")
    );
    let newest = if whole[144] > whole[4096 + 144] { 0 } else { 4096 };
    let root = u64::from_le_bytes(whole[newest + 128..][..8].try_into().expect("8 bytes")) as usize;
    assert_eq!(whole[root * 4096 + 10], 1, "the root branches");
    let first_child = u16::from_le_bytes([whole[root * 4096 + 16], whole[root * 4096 + 17]]);
    let mut looped = whole.clone();
    looped[root * 4096 + usize::from(first_child)] = root as u8;
    assert_eq!(error(&looped).await, format!("source {name}: its pages form a loop"));

    let mut state = 1_u64;
    for _ in 0..40 {
        let mut flipped = whole.clone();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % flipped.len();
            flipped[at] ^= 1 << (state % 8);
        }
        if let Ok(source) = opened(&flipped).await {
            read(&source).await;
        }
    }
}
