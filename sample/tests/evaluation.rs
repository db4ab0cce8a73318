//! Whole evaluations of image sets in every form, and what is refused.

use candle_core::Device;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_sample::images::npy::{Element, Header};
use lapflow_sample::images::npz::write_arrays;
use lapflow_sample::images::parquet::{ImageRow, ParquetWriter};
use lapflow_sample::images::png::write_png;
use lapflow_sample::images::{Compression, ImageSet, NpzWriter};
use lapflow_sample::metrics::{EvalConfig, Extractor, Metric, Needs, Summary, evaluate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};

const SIDE: u32 = 8;

/// Smooth random images whose red grows with `tint`.
fn images(seed: u64, count: usize, tint: f32) -> Vec<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut image = |_| {
        let base: [f32; 3] = [(); 3].map(|()| rng.random_range(0.0..150.0));
        let pixel = |i: usize| base[i % 3] + if i.is_multiple_of(3) { tint } else { 0.0 };
        let bytes = (SIDE * SIDE * 3) as usize;
        (0..bytes).map(|i| (pixel(i) + rng.random_range(0.0..40.0)) as u8).collect()
    };
    (0..count).map(&mut image).collect()
}

fn folder(root: &Path, name: &str, images: &[Vec<u8>]) -> PathBuf {
    let folder = root.join(name);
    for (i, pixels) in images.iter().enumerate() {
        write_png(&folder.join(format!("{}/{i:04}.png", i / 100)), (SIDE, SIDE), pixels).unwrap();
    }
    folder
}

fn pixels() -> Extractor {
    Extractor::Latents(Box::new(Autoencoder::Pixel), Device::Cpu)
}

fn summary(path: &Path) -> lapflow_sample::Result<Summary> {
    Summary::read(path, &pixels(), Needs::default(), 16, &mut |_| ())
}

fn distance(samples: &Path, reference: &Path) -> f64 {
    let config = EvalConfig { allow_few: true, ..Default::default() };
    let (samples, reference) = (summary(samples).unwrap(), summary(reference).unwrap());
    evaluate(samples, reference, &pixels(), &config).unwrap().fd_latent.unwrap()
}

fn message<T>(result: lapflow_sample::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn every_form_of_a_set_scores_the_same() {
    let root = tempfile::tempdir().unwrap();
    let samples = images(1, 230, 0.0);
    let reference = folder(root.path(), "reference", &images(2, 260, 30.0));
    let png = folder(root.path(), "png", &samples);

    let npz = root.path().join("set.npz");
    let side = SIDE as usize;
    let mut writer =
        NpzWriter::create(&npz, 230, Element::U8, &[side, side, 3], Compression::Deflate).unwrap();
    samples.iter().for_each(|pixels| writer.push(pixels).unwrap());
    writer.finish(None).unwrap();

    let parquet = root.path().join("set.parquet");
    let mut writer = ParquetWriter::create(&parquet).unwrap();
    for i in 0..230 {
        let image = std::fs::read(png.join(format!("{}/{i:04}.png", i / 100))).unwrap();
        writer.push(ImageRow { id: i, label: 3, seed: 9, image }).unwrap();
    }
    writer.finish().unwrap();

    let statistics = root.path().join("statistics.npz");
    summary(&png).unwrap().save(&statistics).unwrap();

    let wanted = distance(&png, &reference);
    assert!(wanted > 1.0, "{wanted}");
    for other in [npz, parquet, statistics.clone()] {
        let found = distance(&other, &reference);
        assert!((found - wanted).abs() < 1e-9 * wanted, "{other:?}: {found} for {wanted}");
    }
    assert!(distance(&png, &statistics).abs() < 1e-6);
    let json = serde_json::to_value(summary(&statistics).unwrap()).unwrap();
    assert_eq!(json["images"], 230);
}

#[test]
fn scores_say_what_was_compared() {
    let root = tempfile::tempdir().unwrap();
    let a = folder(root.path(), "a", &images(3, 12, 0.0));
    let config = EvalConfig { allow_few: true, ..Default::default() };
    let sides = (summary(&a).unwrap(), summary(&a).unwrap());
    let scores = evaluate(sides.0, sides.1, &pixels(), &config).unwrap();
    let json = serde_json::to_value(&scores).unwrap();
    assert_eq!(json["samples"]["content"]["formats"]["PNG"], 12);
    assert_eq!(json["reference"]["content"]["width"], SIDE);
    assert_eq!(json["extractor"]["name"], "latents of pixel");
    assert!(json["warnings"][0].as_str().unwrap().contains("only 12 images"));
    assert!(json.get("fid").is_none());
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let a = folder(root.path(), "a", &images(4, 12, 0.0));
    let evaluated = |config: &EvalConfig| {
        evaluate(summary(&a).unwrap(), summary(&a).unwrap(), &pixels(), config)
    };
    let few = "12 images are fewer than 10000";
    assert!(message(evaluated(&EvalConfig::default())).contains(few));
    let needs = EvalConfig::default().needs(&pixels()).unwrap();
    let unread = Summary::read(&a, &pixels(), needs, 5, &mut |_| panic!("looks at images"));
    assert!(message(unread).contains(few));
    let config = EvalConfig { metrics: vec![Metric::Fid], allow_few: true, ..Default::default() };
    assert!(message(evaluated(&config)).contains("Fid is not defined over latents of pixel"));

    assert!(message(summary(&root.path().join("absent"))).contains("absent: does not exist"));
    std::fs::create_dir(root.path().join("empty")).unwrap();
    assert!(message(summary(&root.path().join("empty"))).contains("empty: holds no images"));

    write_png(&a.join("0/0005.png"), (4, 4), &[0; 48]).unwrap();
    let mixed = message(summary(&a));
    assert!(
        mixed.contains("0005.png") && mixed.contains("is 4x4") && mixed.contains("8x8"),
        "{mixed}"
    );

    let whole = std::fs::read(a.join("0/0007.png")).unwrap();
    write_png(&a.join("0/0005.png"), (SIDE, SIDE), &images(5, 1, 0.0)[0]).unwrap();
    std::fs::write(a.join("0/0007.png"), &whole[..whole.len() / 2]).unwrap();
    assert!(message(summary(&a)).contains("0007.png"));
}

#[test]
fn statistics_of_something_else_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("reference.npz");
    let write = |mu: usize, sigma: &[usize], origin: Option<&str>| {
        let header = |element, shape: &[usize]| Header { element, shape: shape.to_vec() };
        let zeros = |count: usize| vec![0u8; count * 8];
        let (mean, covariance) = (zeros(mu), zeros(sigma.iter().product()));
        let mut arrays = vec![
            ("mu", header(Element::F64, &[mu]), mean.as_slice()),
            ("sigma", header(Element::F64, sigma), covariance.as_slice()),
        ];
        if let Some(origin) = origin {
            arrays.push(("lapflow", header(Element::U8, &[origin.len()]), origin.as_bytes()));
        }
        write_arrays(&path, &arrays).unwrap();
    };
    write(3, &[3, 2], None);
    assert!(message(summary(&path)).contains("sigma has shape [3, 2] beside 3"));

    let origin = r#"{"extractor":{"name":"other","weights_sha256":null,"input":""},"images":5}"#;
    write(3, &[3, 3], Some(origin));
    let other = message(summary(&path));
    assert!(other.contains("statistics of other") && other.contains("latents of pixel"), "{other}");

    write(3, &[3, 3], None);
    let samples = folder(root.path(), "samples", &images(6, 9, 0.0));
    let config = EvalConfig { allow_few: true, ..Default::default() };
    let (samples, reference) = (summary(&samples).unwrap(), summary(&path).unwrap());
    assert!(reference.save(&path).is_err());
    let scores = evaluate(samples, reference, &pixels(), &config);
    let (scores, other) = (message(scores), "has 192 features an image from 8x8");
    assert!(scores.contains(": 3 features an image, ") && scores.contains(other), "{scores}");
    assert!(message(ImageSet::open(&path)).contains("holds no images"));
}
