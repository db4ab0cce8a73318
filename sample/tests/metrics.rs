//! Scores against pytorch-fid and torch-fidelity, from the same hashed features and weights.

use candle_core::{Device, Tensor};
use lapflow_ingest::RgbImage;
use lapflow_model::weights::Weights;
use lapflow_sample::images::png::write_png;
use lapflow_sample::metrics::{
    EvalConfig, Extractor, Inception, InceptionScore, KidConfig, Metric, Statistics, Summary,
    evaluate, frechet_distance, kid, precision_recall,
};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    statistics: Vec<StatisticsCase>,
    inception: InceptionGolden,
    small_sets: SmallSets,
}

#[derive(Deserialize)]
struct SmallSets {
    fid: f64,
    sfid: f64,
}

#[derive(Deserialize)]
struct StatisticsCase {
    rows: usize,
    other: usize,
    dims: usize,
    fid: f64,
    kid: f64,
    precision: f64,
    recall: f64,
    inception_score: (f64, f64),
}

#[derive(Deserialize)]
struct InceptionGolden {
    shapes: BTreeMap<String, Vec<usize>>,
    cases: Vec<InceptionCase>,
}

#[derive(Deserialize)]
struct InceptionCase {
    height: usize,
    width: usize,
    pool: Vec<Vec<f32>>,
    spatial: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/metrics.json")).unwrap()
}

/// `count` numbers in [0, 1), from the position and the name alone; as in golden/metrics.py.
fn hashed(name: &str, count: usize) -> Vec<f32> {
    let start =
        name.bytes().fold(2166136261u32, |x, byte| (x ^ u32::from(byte)).wrapping_mul(16777619));
    let value = |i: usize| {
        let x = (i as u32).wrapping_mul(2654435761).wrapping_add(start);
        let x = (x ^ (x >> 15)).wrapping_mul(2246822519);
        let x = (x ^ (x >> 13)).wrapping_mul(3266489917);
        (x >> 8) as f32 / (1 << 24) as f32
    };
    (0..count).map(value).collect()
}

fn features(name: &str, rows: usize, dims: usize, spread: f32) -> Vec<f32> {
    let u = hashed(name, rows * dims);
    let value = |i: usize| {
        let left = if i.is_multiple_of(dims) { i + dims - 1 } else { i - 1 };
        u[i] * spread + u[left] + u[i] * u[i]
    };
    (0..rows * dims).map(value).collect()
}

fn weight(name: &str, shape: &[usize]) -> Tensor {
    let mut values = hashed(name, shape.iter().product());
    let fan_in: usize = shape[1..].iter().product();
    let bound = 1.5 / (fan_in as f64).sqrt() as f32 * 1.5;
    for v in &mut values {
        *v = match shape {
            _ if name.ends_with("running_var") || name.ends_with("bn.weight") => *v + 0.5,
            [_] => (*v - 0.5) * 0.4,
            _ => (*v * 2.0 - 1.0) * bound,
        };
    }
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * b.abs()
}

#[test]
fn scores_agree_with_pytorch_fid_and_torch_fidelity() {
    for case in golden().statistics {
        let dims = case.dims;
        let a = features(&format!("a {dims}"), case.rows, dims, 1.0);
        let b = features(&format!("b {dims}"), case.other, dims, 1.3);
        let gaussian = |rows: &[f32]| {
            let mut statistics = Statistics::new(dims);
            statistics.push(rows).unwrap();
            statistics.gaussian().unwrap()
        };
        let fid = frechet_distance(&gaussian(&a), &gaussian(&b)).unwrap();
        assert!(close(fid, case.fid, 1e-9), "FID {fid} for {}", case.fid);

        let manifolds = precision_recall(&a, &b, dims).unwrap();
        assert!(close(manifolds.precision, case.precision, 1e-6), "{manifolds:?}");
        assert!(close(manifolds.recall, case.recall, 1e-6), "{manifolds:?}");

        // One subset of all rows, so that nothing hangs on a random draw.
        let rows = case.rows.min(case.other);
        let config = KidConfig { subsets: 1, subset_rows: rows, seed: 0 };
        let kid = kid(&a[..rows * dims], &b[..rows * dims], dims, &config).unwrap().mean;
        assert!(close(kid, case.kid, 1e-9), "KID {kid} for {}", case.kid);

        let mut score = InceptionScore::new(dims, case.rows / 2);
        let logits: Vec<f32> = a.iter().map(|v| v * 4.0).collect();
        logits.chunks(7 * dims).for_each(|rows| score.push(rows));
        let score = score.score().unwrap();
        assert_eq!(score.splits, 2);
        assert!(close(score.mean, case.inception_score.0, 1e-9), "IS {score:?}");
        assert!(close(score.std, case.inception_score.1, 1e-7), "IS {score:?}");
    }
}

/// Inception with hashed weights.
fn network(golden: &InceptionGolden) -> Inception {
    let tensors =
        golden.shapes.iter().map(|(name, shape)| (name.clone(), weight(name, shape))).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hashed.safetensors");
    Weights::write(&path, &tensors, &BTreeMap::new()).unwrap();
    Inception::open(&path, &Device::Cpu).unwrap()
}

#[test]
fn fid_and_sfid_of_small_sets_agree_with_adm_s_definition() {
    let golden = golden();
    let extractor = Extractor::Inception(Box::new(network(&golden.inception)));
    let folder = tempfile::tempdir().unwrap();
    let config = EvalConfig {
        metrics: vec![Metric::Fid, Metric::Sfid],
        allow_few: true,
        ..Default::default()
    };
    let summary = |name: &str, count: usize| {
        let pixels: Vec<u8> =
            hashed(name, count * 24 * 24 * 3).iter().map(|v| (v * 256.0) as u8).collect();
        for (i, image) in pixels.chunks(24 * 24 * 3).enumerate() {
            let path = folder.path().join(name).join(format!("{i}.png"));
            write_png(&path, (24, 24), image).unwrap();
        }
        let needs = config.needs(&extractor).unwrap();
        Summary::read(&folder.path().join(name), &extractor, needs, 4, &mut |_| ()).unwrap()
    };
    let scores = evaluate(summary("set a", 6), summary("set b", 5), &extractor, &config).unwrap();
    let (fid, sfid) = (scores.fid.unwrap(), scores.sfid.unwrap());
    eprintln!(
        "FID {fid} for {}, sFID {sfid} for {}",
        golden.small_sets.fid, golden.small_sets.sfid
    );
    assert!(close(fid, golden.small_sets.fid, 1e-4), "FID {fid}");
    assert!(close(sfid, golden.small_sets.sfid, 1e-4), "sFID {sfid}");
}

#[test]
fn inception_agrees_with_pytorch_fid() {
    let golden = golden().inception;
    let network = network(&golden);
    for case in golden.cases {
        let (height, width) = (case.height, case.width);
        let bytes = height * width * 3;
        let pixels: Vec<u8> = hashed(&format!("image {height}"), 2 * bytes)
            .iter()
            .map(|v| (v * 256.0) as u8)
            .collect();
        let image = |pixels: &[u8]| RgbImage {
            width: width as u32,
            height: height as u32,
            pixels: pixels.to_vec(),
        };
        let images: Vec<RgbImage> = pixels.chunks(bytes).map(image).collect();
        let found = network.features(&images).unwrap();
        for (name, found, step, wanted) in [
            ("pool", &found.pool, 41, &case.pool),
            ("spatial", &found.spatial, 43, &case.spatial),
            ("logits", &found.logits, 21, &case.logits),
        ] {
            let scale = wanted.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
            let mut worst = 0f32;
            for (row, wanted) in found.chunks(found.len() / 2).zip(wanted) {
                assert_eq!(row.iter().step_by(step).count(), wanted.len());
                for (a, b) in row.iter().step_by(step).zip(wanted) {
                    assert!(a.is_finite(), "{name}");
                    worst = worst.max((a - b).abs() / scale);
                }
            }
            eprintln!("{name} at {height}x{width}: {worst:e}");
            assert!(worst < 1e-4, "{name} at {height}x{width}: {worst:e}");
        }
        let other = RgbImage { width: 8, height: 8, pixels: vec![0; 192] };
        let mixed = network.features(&[images[0].clone(), other]).unwrap_err();
        assert!(mixed.to_string().contains("differ in size"), "{mixed}");
    }
}

#[test]
fn other_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let tensors = [("fc.weight".to_string(), weight("fc.weight", &[3, 2]))].into();
    Weights::write(&path, &tensors, &BTreeMap::new()).unwrap();
    let error = Inception::open(&path, &Device::Cpu).err().unwrap().to_string();
    assert!(
        error.contains("other.safetensors")
            && error.contains("no `Conv2d_1a_3x3.conv.weight` of 4 axes"),
        "{error}"
    );
}

#[test]
fn too_few_images_are_refused() {
    let rows = features("few", 4, 3, 1.0);
    let error = precision_recall(&rows, &rows[..9], 3).unwrap_err().to_string();
    assert!(error.contains("3 images are too few"), "{error}");
    assert!(precision_recall(&rows, &rows, 3).unwrap().precision == 1.0);
    assert!(kid(&rows[..3], &rows, 3, &KidConfig::default()).is_err());
    assert!(InceptionScore::new(3, 5).score().is_err());
}
