//! Every method from pictures to samples through the binary, on a distribution of two numbers.
//!
//! A picture of 8x8 pixels is a grey value plus vertical stripes; both have two modes, so that the
//! pair has four. The grey lives in the coarse level of a pyramid, the stripes in the fine one.

use candle_core::{DType, Device};
use image::{GrayImage, ImageReader, Luma};
use lapflow_model::Params;
use lapflow_model::autoencoder::{KlConfig, KlNetwork};
use lapflow_model::weights::Weights;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::path::Path;
use std::process::Command;

const SIDE: u32 = 8;
const GREYS: [f64; 2] = [0.35, 0.65];
const STRIPES: [f64; 2] = [-0.15, 0.15];
/// Half the width of a mode.
const BLUR: f64 = 0.03;

fn lapflow(arguments: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_lapflow")).args(arguments).output().expect("it starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "lapflow {}: {error}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn draw(folder: &Path, count: usize) -> Vec<[f64; 2]> {
    std::fs::create_dir_all(folder).unwrap();
    let mut rng = StdRng::seed_from_u64(11);
    let mut mode =
        |modes: [f64; 2]| modes[rng.random_range(0..2)] + BLUR * (2.0 * rng.random::<f64>() - 1.0);
    (0..count)
        .map(|i| {
            let (grey, stripe) = (mode(GREYS), mode(STRIPES));
            let value = |x: u32| grey + if x.is_multiple_of(2) { stripe } else { -stripe };
            let byte = |x| Luma([(255.0 * value(x)).round() as u8]);
            let picture = GrayImage::from_fn(SIDE, SIDE, |x, _| byte(x));
            picture.save(folder.join(format!("{i:04}.png"))).unwrap();
            [grey, stripe]
        })
        .collect()
}

/// Grey and stripes of every picture in `folder`, and the root mean square of all that is neither.
fn read(folder: &Path) -> (Vec<[f64; 2]>, f64) {
    let (mut points, mut rest, mut values) = (Vec::new(), 0.0, 0.0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "png") {
            continue;
        }
        let picture = ImageReader::open(&path).unwrap().decode().unwrap().to_rgb32f();
        let sign = |x: u32| if x.is_multiple_of(2) { 1.0 } else { -1.0 };
        let all: Vec<(f64, f64)> = picture
            .enumerate_pixels()
            .flat_map(|(x, _, p)| p.0.map(|v| (sign(x), f64::from(v))))
            .collect();
        let mean =
            |f: &dyn Fn(&(f64, f64)) -> f64| all.iter().map(f).sum::<f64>() / all.len() as f64;
        let (grey, stripe) = (mean(&|(_, v)| *v), mean(&|(s, v)| s * v));
        rest += all.iter().map(|(s, v)| (v - grey - s * stripe).powi(2)).sum::<f64>();
        values += all.len() as f64;
        points.push([grey, stripe]);
    }
    (points, (rest / values).sqrt())
}

/// Mean over 16 directions of the first Wasserstein distance of the projections.
fn sliced_distance(a: &[[f64; 2]], b: &[[f64; 2]]) -> f64 {
    let quantiles = |points: &[[f64; 2]], angle: f64| -> Vec<f64> {
        let mut line: Vec<f64> =
            points.iter().map(|[x, y]| x * angle.cos() + y * angle.sin()).collect();
        line.sort_by(f64::total_cmp);
        (0..100).map(|i| line[(2 * i + 1) * line.len() / 200]).collect()
    };
    let angles = (0..16).map(|i| std::f64::consts::PI * f64::from(i) / 16.0);
    let distances = angles.map(|angle| {
        let (a, b) = (quantiles(a, angle), quantiles(b, angle));
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f64>() / 100.0
    });
    distances.sum::<f64>() / 16.0
}

/// Trains and samples; the distance of the samples from the data, and what lies off the plane.
fn learn(root: &Path, data: &[[f64; 2]], name: &str, sections: &str, steps: u32) -> (f64, f64) {
    let (run, out) = (root.join(name), root.join(format!("{name}-samples")));
    let config = root.join(format!("{name}.toml"));
    let text = format!(
        "[data]\nsource = {source:?}\ndataset = {dataset:?}\nsize = {SIDE}\ncrop = \"resize\"\n\
         levels = 2\n[autoencoder]\nweights = \"pixel\"\n[train]\nfolder = {run:?}\n\
         steps = {steps}\nbatch = 32\nlr = 3e-3\nlr_final = 1e-5\nwarmup_steps = 20\n\
         clip_norm = 1.0\nema_decay = 0.98\nstages = \"balanced\"\nlog_every = 100\n{sections}",
        source = root.join("pictures"),
        dataset = root.join("dataset").display().to_string(),
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    if !root.join("dataset").exists() {
        lapflow(&["encode", config]);
    }
    lapflow(&["train", config, "--dry-run"]);
    lapflow(&["train", config]);
    let (run, folder) = (run.to_str().unwrap(), out.to_str().unwrap());
    lapflow(&["sample", run, "--count", "200", "--out", folder]);
    let (points, rest) = read(&out);
    assert_eq!(points.len(), 200);
    let distance = sliced_distance(&points, data);
    println!("{name}: distance {distance:.4}, off the plane {rest:.4}, {steps} steps");
    (distance, rest)
}

const SMALL: &str = "width = 48\ndepth = 2\nheads = 2\ncond_tokens = false";
const HEUN: &str = "[sample]\nsolver = \"heun\"\nsteps = 16\nbatch = 100";

fn recipe(model: &str, flow: &str, sample: &str) -> String {
    format!("[model]\n{SMALL}\n{model}\n[flow]\n{flow}\n{sample}\n")
}

fn methods() -> Vec<(&'static str, String)> {
    let alone = "untied = []";
    let ddim = "[sample]\nsolver = \"ddim\"\nsteps = 50\nbatch = 100";
    let learned = "untied = []\nlearn_sigma = true";
    let ddpm = "[sample]\nsolver = \"ddpm\"\nsteps = 100\nbatch = 100";
    let separate = "mask = \"self\"\nuntied = [\"embed\", \"qkv\", \"attn_out\", \"mlp\", \"adaln\", \"head\"]";
    vec![
        ("lapflow", recipe("", "levels = 2", HEUN)),
        ("lfm", recipe(alone, "levels = 1", HEUN)),
        ("pyramidal", recipe(alone, "method = \"pyramidal\"", HEUN)),
        ("edify", recipe(alone, "method = \"edify\"", HEUN)),
        ("separate", recipe(separate, "levels = 2", HEUN)),
        ("dit-ddim", recipe(alone, "method = \"dit\"\nlevels = 1", ddim)),
        ("dit-ddpm", recipe(learned, "method = \"dit\"\nlevels = 1", ddpm)),
    ]
}

/// Distance of one mode's neighbour is 0.3; noise (grey 0.5 with no stripes) is 0.13 away.
///
/// DiT's noise prediction, whose small errors at the noisy end are amplified most, learns slowest:
/// its bounds are `slack` times the others'.
fn learn_all(steps: u32, distance_max: f64, rest_max: f64, slack: f64) {
    let root = tempfile::tempdir().unwrap();
    let data = draw(&root.path().join("pictures"), 400);
    let noise = vec![[0.5, 0.0]; data.len()];
    println!("a grey picture: distance {:.4}", sliced_distance(&noise, &data));
    let results: Vec<_> = methods()
        .into_iter()
        .map(|(name, sections)| (name, learn(root.path(), &data, name, &sections, steps)))
        .collect();
    for (name, (distance, rest)) in results {
        let slack = if name.starts_with("dit") { slack } else { 1.0 };
        assert!(distance < slack * distance_max, "{name}: distance {distance}");
        assert!(rest < slack * rest_max, "{name}: off the plane {rest}");
    }
}

#[test]
fn every_method_trains_and_samples_through_the_binary() {
    learn_all(150, 0.08, 0.15, 2.5);
}

#[test]
#[ignore = "a minute or more"]
fn every_method_learns_four_modes_in_two_dimensions() {
    learn_all(1500, 0.03, 0.04, 2.0);
}

/// The tiny one of the model crate's goldens, whose latents the built-in autoencoder can decode.
#[test]
fn a_published_dit_becomes_a_checkpoint_to_sample_from() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).display().to_string();
    let published = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/dit_published.pt");
    let dit = at("dit.safetensors");
    lapflow(&["convert", published, &dit, "--autoencoder", "builtin", "--heads", "2"]);
    for solver in ["ddpm", "ddim"] {
        let out = at(solver);
        let how = ["--solver", solver, "--steps", "10", "--cfg", "1.5", "--labels", "3"];
        lapflow(&[["sample", &dit, "--count", "3", "--out", &out].as_slice(), &how].concat());
        assert_eq!(read(Path::new(&out)).0.len(), 3);
    }
}

/// What the shapes of an autoencoder do not tell is in the header afterwards.
#[test]
fn a_converted_autoencoder_keeps_its_description() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).display().to_string();
    let [vae, description] = ["diffusion_pytorch_model.safetensors", "config.json"].map(at);
    let architecture = KlConfig {
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        norm_num_groups: 4,
        ..KlConfig::default()
    };
    let built = |scope: &_| KlNetwork::new(scope, &architecture);
    let (_, params) = Params::init(1, DType::F32, &Device::Cpu, built).unwrap();
    let tensors = params.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone()));
    Weights::write(&vae, &tensors.collect(), &Default::default()).unwrap();
    let described = |path: &str| KlConfig::stated(&Weights::read(path).unwrap()).unwrap().unwrap();
    let out = at("keyed.safetensors");
    lapflow(&["convert", &vae, &out, "--groups", "4", "--scale", "0.3", "--shift", "-0.1"]);
    let keyed = described(&out);
    assert_eq!((keyed.scaling_factor, keyed.shift_factor), (Some(0.3), -0.1));
    std::fs::write(description, r#"{"norm_num_groups": 2, "scaling_factor": 0.7}"#).unwrap();
    let out = at("described.safetensors");
    lapflow(&["convert", &root.path().display().to_string(), &out]);
    let description = described(&out);
    assert_eq!((description.norm_num_groups, keyed.norm_num_groups), (2, 4));
    assert_eq!((description.scaling_factor, description.shift_factor), (Some(0.7), 0.0));
}

/// As README has it, but for a second instead of a minute.
#[test]
fn doctor_checks_and_trains_without_a_config() {
    let said = lapflow(&["--device", "cpu", "--json", "doctor", "--seconds", "1"]);
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(found["images_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{said}");
}
