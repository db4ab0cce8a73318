//! The transformer against an independent PyTorch implementation, and its properties.

use candle_core::{DType, Device, Tensor};
use lapflow_model::flow::{FlowConfig, Path};
use lapflow_model::kernels::Mask;
use lapflow_model::net::{Geometry, ModelConfig, Part, Precision, Preset, Transformer, cost};
use lapflow_model::{Params, flow};
use rand_distr::{Distribution, StandardNormal};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

const SIZE: usize = 8;
const CHANNELS: usize = 3;
const BATCH: usize = 2;

#[derive(serde::Deserialize)]
struct Case {
    levels: usize,
    mask: Mask,
    finest: usize,
    classes: usize,
    cond_tokens: bool,
    untied: Vec<Part>,
}

impl Case {
    fn config(&self) -> ModelConfig {
        ModelConfig {
            width: Some(8),
            depth: Some(2),
            heads: Some(2),
            mask: self.mask,
            untied: self.untied.clone(),
            cond_tokens: self.cond_tokens,
            ..ModelConfig::default()
        }
    }

    fn geometry(&self) -> Geometry {
        let (channels, levels, classes) = (CHANNELS, self.levels, self.classes);
        Geometry { channels, height: SIZE, width: SIZE, levels, classes }
    }
}

/// The generator's pseudo-random values: a 32-bit hash of name and index.
fn hashed(name: &str, shape: &[usize], scale: f64) -> Tensor {
    let mut crc = !0u32;
    for byte in name.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u32)
        .map(|i| {
            let mixed = (u64::from(i) + u64::from(!crc)).wrapping_mul(2_654_435_761) as u32;
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519);
            ((2.0 * f64::from(mixed) / 4_294_967_296.0 - 1.0) * scale) as f32
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = flow::image_rng(seed, 0);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| StandardNormal.sample(&mut rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    let largest = |t: &Tensor| lapflow_model::kernels::largest(t).unwrap();
    largest(&(got - want).unwrap()) / largest(want).max(1e-6)
}

/// Builds the case's network with every parameter set to its hashed values.
fn hashed_network(case: &Case) -> (Transformer, Params) {
    let (config, geometry) = (case.config(), case.geometry());
    let build = |scope: &lapflow_model::Scope| Transformer::new(scope, &config, &geometry);
    let (net, params) = Params::init(1, DType::F32, &Device::Cpu, build).unwrap();
    for (name, var) in params.iter() {
        var.set(&hashed(name, var.dims(), 0.3)).unwrap();
    }
    (net, params)
}

fn golden_files() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("transformer_k"))
        .collect();
    files.sort();
    files
}

#[test]
fn outputs_and_gradients_agree_with_pytorch() {
    compare_with_pytorch(None);
}

/// The backward pass of a block written by hand, with kept and with recomputed activations.
#[test]
fn training_blocks_agree_with_pytorch() {
    compare_with_pytorch(Some(false));
    compare_with_pytorch(Some(true));
}

/// With blocks by Candle's tape, or by hand with kept or recomputed activations.
fn compare_with_pytorch(recompute: Option<bool>) {
    let files = golden_files();
    assert_eq!(files.len(), 15);
    let (mut worst_output, mut worst_gradient) = (0f64, 0f64);
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let case: Case =
            serde_json::from_str(&header.metadata().as_ref().unwrap()["case"]).unwrap();
        let golden = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        let (mut net, params) = hashed_network(&case);
        let (sender, blocks) = std::sync::mpsc::channel();
        if let Some(recompute) = recompute {
            net.train_blocks(recompute, Precision::F32, sender);
        }

        let levels: Vec<Tensor> = (case.finest..case.levels)
            .map(|k| hashed(&format!("x{k}"), &[BATCH, CHANNELS, SIZE >> k, SIZE >> k], 1.5))
            .collect();
        let t = Tensor::new(&[0.625f32, 0.9375], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[3u32, 5], &Device::Cpu).unwrap();
        let out = net.forward(&levels, &t, Some(&labels)).unwrap();

        let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        for (v, k) in out.iter().zip(case.finest..) {
            worst_output = worst_output.max(relative_error(v, &golden[&format!("v{k}")]));
            let weight = hashed(&format!("weight{k}"), v.dims(), 1.0);
            loss = (loss + (v * weight).unwrap().sum_all().unwrap()).unwrap();
        }
        let grads = loss.backward().unwrap();
        let blocks: HashMap<_, _> = blocks.try_iter().flatten().collect();
        let gradient = |var: &candle_core::Var| match (grads.get(var), blocks.get(&var.id())) {
            (Some(_), Some(_)) => panic!("two gradients of one parameter"),
            (tape, block) => tape.or(block).cloned(),
        };
        for (name, var) in params.iter() {
            let key = format!("grad.{name}");
            match (gradient(var), golden.get(&key)) {
                (Some(got), Some(want)) => {
                    worst_gradient = worst_gradient.max(relative_error(&got, want));
                }
                (None, None) => {}
                (got, _) => panic!("{}: {name}: ours {}", path.display(), got.is_some()),
            }
        }
        let known = golden.keys().filter(|key| key.starts_with("grad.")).count();
        let ours = params.iter().filter(|(_, var)| gradient(var).is_some()).count();
        assert_eq!(known, ours, "{}", path.display());
    }
    eprintln!("worst relative error: outputs {worst_output:.1e}, gradients {worst_gradient:.1e}");
    assert!(worst_output < 1e-4 && worst_gradient < 1e-4);
}

#[test]
fn finer_levels_leave_coarser_outputs_unchanged() {
    let case = Case {
        levels: 3,
        mask: Mask::Causal,
        finest: 0,
        classes: 5,
        cond_tokens: true,
        untied: vec![Part::Qkv],
    };
    let (net, _) = hashed_network(&case);
    let levels: Vec<Tensor> =
        (0..3).map(|k| random(&[BATCH, CHANNELS, SIZE >> k, SIZE >> k], k as u64)).collect();
    let t = Tensor::new(&[0.7f32, 0.8], &Device::Cpu).unwrap();
    let all = net.forward(&levels, &t, None).unwrap();
    for finest in 1..3 {
        let fewer = net.forward(&levels[finest..], &t, None).unwrap();
        for (got, want) in fewer.iter().zip(&all[finest..]) {
            assert!(relative_error(got, want) < 1e-6);
        }
    }
    let (open, _) = hashed_network(&Case { mask: Mask::None, ..case });
    let all = open.forward(&levels, &t, None).unwrap();
    let fewer = open.forward(&levels[1..], &t, None).unwrap();
    assert!(relative_error(&fewer[0], &all[1]) > 1e-4, "without a mask finer levels must matter");
}

#[test]
fn every_variable_receives_a_gradient() {
    for (levels, untied) in [(1, vec![]), (2, vec![Part::Embed, Part::Qkv, Part::Head])] {
        let case =
            Case { levels, mask: Mask::Causal, finest: 0, classes: 4, cond_tokens: true, untied };
        let (net, params) = hashed_network(&case);
        let levels: Vec<Tensor> =
            (0..levels).map(|k| random(&[BATCH, CHANNELS, SIZE >> k, SIZE >> k], 7)).collect();
        let t = Tensor::new(&[0.6f32, 0.9], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[0u32, 4], &Device::Cpu).unwrap();
        let out = net.forward(&levels, &t, Some(&labels)).unwrap();
        let loss = out
            .iter()
            .map(|v| v.sqr().unwrap().sum_all().unwrap())
            .reduce(|a, b| (a + b).unwrap())
            .unwrap();
        let grads = loss.backward().unwrap();
        for (name, var) in params.iter() {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size = grad.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0, "{name} has a zero gradient");
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let case = Case {
        levels: 2,
        mask: Mask::Causal,
        finest: 0,
        classes: 3,
        cond_tokens: true,
        untied: vec![Part::Adaln, Part::Head],
    };
    let (net, params) = hashed_network(&case);
    let levels: Vec<Tensor> =
        (0..2).map(|k| random(&[BATCH, CHANNELS, SIZE >> k, SIZE >> k], 11)).collect();
    let t = Tensor::new(&[0.55f32, 0.95], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
    let loss = || {
        let out = net.forward(&levels, &t, Some(&labels)).unwrap();
        let sums = out.iter().map(|v| v.sqr().unwrap().mean_all().unwrap());
        sums.reduce(|a, b| (a + b).unwrap()).unwrap()
    };
    let grads = loss().backward().unwrap();
    for (seed, (name, var)) in params.iter().enumerate() {
        let direction = random(var.dims(), 100 + seed as u64);
        let slope = (grads.get(var).unwrap() * &direction).unwrap().sum_all().unwrap();
        let slope = slope.to_scalar::<f32>().unwrap() as f64;
        let before = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&before + (&direction * step).unwrap()).unwrap()).unwrap();
            loss().to_scalar::<f32>().unwrap() as f64
        };
        let step = 1e-3;
        let numeric = (at(step) - at(-step)) / (2.0 * step);
        var.set(&before).unwrap();
        let error = (numeric - slope).abs() / slope.abs().max(0.05);
        assert!(error < 0.03, "{name}: {numeric} against {slope}");
    }
}

#[test]
fn loading_names_absent_surplus_and_misshapen_keys() {
    let case = Case {
        levels: 1,
        mask: Mask::Causal,
        finest: 0,
        classes: 0,
        cond_tokens: false,
        untied: vec![],
    };
    let (config, geometry) = (case.config(), case.geometry());
    let (_, params) = hashed_network(&case);
    let weights = || -> BTreeMap<String, Tensor> {
        params.iter().map(|(n, v)| (n.to_string(), v.as_tensor().clone())).collect()
    };
    let load = |weights| {
        Params::load(weights, DType::F32, &Device::Cpu, |s| Transformer::new(s, &config, &geometry))
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert!(load(weights()).is_ok());
    let mut absent = weights();
    absent.remove("blocks.1.mlp.fc1.bias");
    assert!(load(absent).unwrap_err().contains("blocks.1.mlp.fc1.bias"));
    let mut surplus = weights();
    surplus.insert("blocks.9.bias".into(), random(&[1], 0));
    assert!(load(surplus).unwrap_err().contains("blocks.9.bias"));
    let mut misshapen = weights();
    misshapen.insert("final_layer.linear.bias".into(), random(&[5], 0));
    assert!(load(misshapen).unwrap_err().contains("final_layer.linear.bias"));
}

#[test]
fn parameters_are_counted_as_built() {
    for name in golden_files() {
        let bytes = std::fs::read(name).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let case: Case =
            serde_json::from_str(&header.metadata().as_ref().unwrap()["case"]).unwrap();
        let (_, params) = hashed_network(&case);
        let path = Path::new(&FlowConfig { levels: case.levels, ..FlowConfig::default() }).unwrap();
        let counted = cost(&case.config(), &case.geometry(), &path).parameters;
        assert_eq!(counted, params.count() as u64);
    }
}

#[test]
fn dit_costs_are_the_published_ones() {
    let path = Path::new(&FlowConfig { levels: 1, ..FlowConfig::default() }).unwrap();
    let geometry = Geometry { channels: 4, height: 32, width: 32, levels: 1, classes: 1000 };
    for (preset, published) in
        [(Preset::S, 6.06), (Preset::B, 23.01), (Preset::L, 80.71), (Preset::XL, 118.64)]
    {
        let config = ModelConfig { preset, cond_tokens: false, ..ModelConfig::default() };
        // The published networks predict a variance beside each value: a head twice as wide.
        let variance_head = (256 * 16 * config.width()) as f64;
        let giga = (cost(&config, &geometry, &path).mean_macs + variance_head) / 1e9;
        assert!((giga - published).abs() < 0.005, "{preset:?}: {giga} against {published}");
    }
}

#[test]
fn two_levels_cost_three_quarters_of_one() {
    let geometry = |levels| Geometry { channels: 4, height: 32, width: 32, levels, classes: 0 };
    let config = ModelConfig { preset: Preset::L, cond_tokens: false, ..ModelConfig::default() };
    let path = |levels| Path::new(&FlowConfig { levels, ..FlowConfig::default() }).unwrap();
    let one = cost(&config, &geometry(1), &path(1)).mean_macs;
    let two = cost(&config, &geometry(2), &path(2));
    assert!((two.mean_macs / one - 0.748).abs() < 0.005, "{}", two.mean_macs / one);
    let millions = (two.parameters + 83_653_863) as f64 / 1e6;
    assert!((616.0..618.5).contains(&millions), "{millions}");
    let three = cost(&config, &geometry(3), &path(3)).parameters + 83_653_863;
    assert!((692.0..697.0).contains(&(three as f64 / 1e6)), "{three}");
}
