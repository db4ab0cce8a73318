//! Latents through other projects' layouts and back: the numbers arrive, in files of their shape.

use std::path::Path;
use std::process::Command;

use futures::StreamExt;
use lapflow_store::{Dataset, Dtype, LevelSpec, Metadata, Posterior, Row};

const CHANNELS: usize = 4;
const SIDE: usize = 8;
const COUNT: i64 = 7;

/// The latent (or its log-variance) of an image, as one flat `[4, 8, 8]`.
fn latent(id: i64, view: i8, shift: f32) -> Vec<f32> {
    let value = |index: usize| ((id as f32 * 1.7 + index as f32 * 0.37).sin() * 3.0 + shift) / 2.0;
    let flip = |index: usize| index / SIDE * SIDE + (SIDE - 1 - index % SIDE);
    (0..CHANNELS * SIDE * SIDE).map(|i| value(if view == 1 { flip(i) } else { i })).collect()
}

/// Two levels: the 2x2 means, and what is left when they are repeated.
fn levels(latent: &[f32]) -> Vec<Vec<u8>> {
    let half = SIDE / 2;
    let at = |c: usize, y: usize, x: usize| latent[(c * SIDE + y) * SIDE + x];
    let mut coarse = Vec::new();
    for (c, y, x) in
        (0..CHANNELS * half * half).map(|i| (i / half / half, i / half % half, i % half))
    {
        let sum: f32 = [(0, 0), (0, 1), (1, 0), (1, 1)]
            .map(|(dy, dx)| at(c, 2 * y + dy, 2 * x + dx))
            .iter()
            .sum();
        coarse.push(sum / 4.0);
    }
    let fine = (0..latent.len()).map(|i| {
        let (c, y, x) = (i / SIDE / SIDE, i / SIDE % SIDE, i % SIDE);
        latent[i] - coarse[(c * half + y / 2) * half + x / 2]
    });
    let fine: Vec<f32> = fine.collect();
    vec![Dtype::F32.encode(&fine), Dtype::F32.encode(&coarse)]
}

async fn make(uri: &str, posterior: Posterior, views: i8) {
    let spec = |side| LevelSpec { channels: CHANNELS, height: side, width: side };
    let metadata = Metadata::new(vec![spec(SIDE), spec(SIDE / 2)], Dtype::F32, posterior);
    let dataset = Dataset::create(uri, &metadata).await.unwrap();
    let mut shard = dataset.shard("00000").await.unwrap();
    for (id, view) in (0..COUNT).flat_map(|id| (0..views).map(move |view| (id, view))) {
        let logvar =
            (posterior == Posterior::Moments).then(|| Dtype::F32.encode(&latent(id, view, -4.0)));
        let levels = levels(&latent(id, view, 0.0));
        let (label, source) = ((id % 3) as i32, format!("{id}.jpg"));
        let row =
            Row { id, label, source, sha256: [0; 32], width: 8, height: 8, view, levels, logvar };
        shard.push(row).await.unwrap();
    }
    shard.commit().await.unwrap();
}

/// Whether the command succeeded, and what it said.
fn dataset(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lapflow"))
        .args(["dataset"])
        .args(arguments)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).trim().to_string())
}

fn lapflow(arguments: &[&str]) {
    let (succeeded, said) = dataset(arguments);
    assert!(succeeded, "{arguments:?}: {said}");
}

fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 2e-6 * (1.0 + expected.abs()), "{found} {expected}");
    }
}

/// Shape text and values of an f32 .npy file, read here by hand.
fn npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..6], b"\x93NUMPY");
    let start = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = String::from_utf8_lossy(&bytes[10..start]).to_string();
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
    let shape = header[header.find('(').unwrap()..=header.find(')').unwrap()].replace(' ', "");
    (shape.replace(",)", ")"), Dtype::F32.decode(&bytes[start..]))
}

/// Exports, imports and compares row by row; the exported folder is looked at by `check`.
fn round_trip(layout: &str, posterior: Posterior, views: i8, check: impl Fn(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (from, out, back) = (path("from"), path("out"), path("back"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(make(&from, posterior, views));
    lapflow(&["export", &from, "--layout", layout, "--out", &out]);
    check(Path::new(&out));
    lapflow(&["import", &back, "--layout", layout, "--from", &out]);
    lapflow(&["verify", &back]);
    let mut rows: Vec<Row> = runtime.block_on(async {
        let dataset = Dataset::open(&back).await.unwrap();
        dataset.scan().map(|row| row.unwrap()).collect().await
    });
    rows.sort_by_key(|row| (row.id, row.view));
    assert_eq!(rows.len(), COUNT as usize * views as usize);
    for (index, row) in rows.iter().enumerate() {
        let (id, view) = (index as i64 / i64::from(views), index as i8 % views);
        assert_eq!((row.id, row.view, row.label), (id, view, (id % 3) as i32));
        for (found, expected) in row.levels.iter().zip(levels(&latent(id, view, 0.0))) {
            near(&Dtype::F32.decode(found), &Dtype::F32.decode(&expected));
        }
        if let Some(logvar) = &row.logvar {
            near(&Dtype::F32.decode(logvar), &latent(id, view, -4.0));
        }
    }
}

#[test]
fn repa_round_trip() {
    round_trip("repa", Posterior::Moments, 1, |out| {
        let labels = std::fs::read_to_string(out.join("dataset.json")).unwrap();
        let labels: serde_json::Value = serde_json::from_str(&labels).unwrap();
        assert_eq!(labels["labels"].as_array().unwrap().len(), COUNT as usize);
        assert_eq!(labels["labels"][5][1], 2);
        let name = labels["labels"][5][0].as_str().unwrap();
        assert_eq!(name, "00000/img-mean-std-00000005.npy");
        let (shape, values) = npy(&out.join(name));
        assert_eq!(shape, "(8,8,8)", "mean, then standard deviation");
        let (mean, std) = values.split_at(values.len() / 2);
        near(mean, &latent(5, 0, 0.0));
        near(std, &latent(5, 0, -4.0).iter().map(|v| (v / 2.0).exp()).collect::<Vec<_>>());
    });
}

#[test]
fn lightning_dit_round_trip() {
    round_trip("lightning-dit", Posterior::Mean, 2, |out| {
        let file = std::fs::read(out.join("latents_rank00_shard000.safetensors")).unwrap();
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
        for (name, flip) in [("latents", 0), ("latents_flip", 1)] {
            assert_eq!(header[name]["shape"], serde_json::json!([COUNT, 4, 8, 8]));
            assert_eq!(header[name]["dtype"], "F32");
            let start = 8 + length + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
            let size = CHANNELS * SIDE * SIDE * 4;
            let third = &file[start + 3 * size..start + 4 * size];
            near(&Dtype::F32.decode(third), &latent(3, flip, 0.0));
        }
        assert_eq!(header["labels"]["shape"], serde_json::json!([COUNT]));
        assert_eq!(header["labels"]["dtype"], "I64");
    });
}

#[test]
fn fast_dit_round_trip() {
    round_trip("fast-dit", Posterior::Sample, 1, |out| {
        let (shape, values) = npy(&out.join("imagenet256_features/4.npy"));
        assert_eq!(shape, "(1,4,8,8)");
        near(&values, &latent(4, 0, 0.0).iter().map(|v| v * 0.18215).collect::<Vec<_>>());
        let label = std::fs::read(out.join("imagenet256_labels/4.npy")).unwrap();
        assert_eq!(label[label.len() - 8..], 1i64.to_le_bytes());
    });
}

/// Latents as fast-DiT leaves them, with what an import makes of them.
#[test]
fn imports_name_what_is_missing_and_carry_classes_and_autoencoder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(make(&path("from"), Posterior::Sample, 1));
    lapflow(&["export", &path("from"), "--layout", "fast-dit", "--out", &path("out")]);
    // Of images of another size the folders are called otherwise.
    for part in ["features", "labels"] {
        let name = |size: u32| folder.path().join(format!("out/imagenet{size}_{part}"));
        std::fs::rename(name(256), name(512)).unwrap();
    }
    let import = |to: &str, more: &[&str]| {
        let (to, out) = (path(to), path("out"));
        let fixed = ["import", &to, "--layout", "fast-dit", "--from", &out];
        dataset(&[&fixed[..], more].concat())
    };
    let open = |name: &str| runtime.block_on(Dataset::open(&path(name))).unwrap();

    let (succeeded, said) = import("plain", &[]);
    assert!(
        succeeded && said.contains("labels go up to 2") && said.contains("--classes 3"),
        "{said}"
    );
    let (succeeded, said) = import("named", &["--classes", "3", "--autoencoder", "builtin"]);
    assert!(succeeded, "{said}");
    let named = open("named");
    assert_eq!((named.rows(), named.metadata().classes.len()), (COUNT as u64, 3));
    assert_eq!(named.metadata().autoencoder["architecture"], "kl");
    // The same again changes nothing: what is there is complete.
    assert!(import("named", &["--classes", "3", "--autoencoder", "builtin"]).0);
    assert_eq!(open("named").version(), named.version());
    let (succeeded, said) = import("named", &["--classes", "4"]);
    assert!(!succeeded && said.ends_with("holds a dataset already, of other latents than these"));

    std::fs::write(folder.path().join("names.txt"), "\u{feff}ant\nbee\r\n").unwrap();
    let (succeeded, said) = import("few", &["--classes", &path("names.txt")]);
    assert!(!succeeded && said.ends_with("label 2 is beyond the 2 classes of --classes"), "{said}");
    let (succeeded, said) = import("pixel", &["--autoencoder", "pixel"]);
    assert!(!succeeded && said.ends_with("makes latents of 3 channels, these have 4"), "{said}");

    std::fs::remove_file(folder.path().join("out/imagenet512_features/2.npy")).unwrap();
    let (succeeded, said) = import("gap", &[]);
    assert!(!succeeded && said.ends_with("2.npy' is missing, and 6.npy is there"), "{said}");
    assert!(!folder.path().join("gap").exists());
}
