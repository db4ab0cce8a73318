//! `AutoencoderKL` against diffusers, under both namings, and what is refused.

mod common;

use candle_core::{DType, Device, Tensor};
use common::{golden, golden_path, relative_error, uniform};
use lapflow_model::Params;
use lapflow_model::autoencoder::{
    Architecture, Autoencoder, AutoencoderConfig, CONFIG_KEY, KlConfig, KlNetwork, Transform,
    WeightsSource,
};
use lapflow_model::weights::Weights;
use std::collections::BTreeMap;
use std::path::Path;

/// A folder as diffusers lays it out: weights and `config.json`.
fn save(folder: &Path, name: &str, weights: &BTreeMap<String, Tensor>) -> AutoencoderConfig {
    let path = folder.join("diffusion_pytorch_model.safetensors");
    Weights::write(&path, weights, &Default::default()).unwrap();
    let config = golden_path(&format!("autoencoder_kl_{name}.json"));
    std::fs::copy(config, folder.join("config.json")).unwrap();
    AutoencoderConfig { weights: WeightsSource::File(path), ..Default::default() }
}

fn images() -> Tensor {
    images_of(16, 24)
}

fn images_of(height: usize, width: usize) -> Tensor {
    let values = uniform("images", 3 * 3 * height * width);
    Tensor::from_vec(values, (3, 3, height, width), &Device::Cpu).unwrap()
}

#[test]
fn agrees_with_diffusers_under_both_namings() {
    for (name, channels, factor, scale, images) in [
        ("f4", 4, 4, 0.18215, images()),
        ("f8", 16, 8, 1.5305, images()),
        ("g16", 4, 2, 0.5, images()),
        ("f16", 32, 16, 0.18215, images_of(32, 16)),
    ] {
        for naming in ["diffusers", "ldm"] {
            let dir = tempfile::tempdir().unwrap();
            let (golden, weights) = golden(&format!("autoencoder_kl_{name}_{naming}.safetensors"));
            let config = save(dir.path(), name, &weights);
            let autoencoder = Autoencoder::open(&config, &Device::Cpu).unwrap();
            let identity = autoencoder.identity();
            assert_eq!(identity.architecture, Architecture::Kl);
            assert_eq!((identity.channels, identity.factor), (channels, factor));
            assert_eq!(identity.scale, Some(scale));

            let posterior = autoencoder.encode(&images).unwrap();
            let decoded = autoencoder.decode(&golden["mean"]).unwrap();
            let errors = [
                relative_error(&posterior.mean, &golden["mean"]),
                relative_error(&posterior.logvar.unwrap(), &golden["logvar"]),
                relative_error(&decoded, &golden["decoded"]),
            ];
            eprintln!("{name} {naming}: relative errors of mean, logvar, image {errors:?}");
            assert!(errors.iter().all(|&error| error < 1e-4), "{name} {naming}: {errors:?}");
        }
    }
}

/// Groups do not show in the shapes: whoever states them, the latents are diffusers', and where
/// nobody does they are asked for.
#[test]
fn groups_are_read_wherever_they_are_stated_and_asked_for_elsewhere() {
    for (name, groups) in [("f4", 4), ("f8", 8), ("g16", 16)] {
        let dir = tempfile::tempdir().unwrap();
        let (golden, weights) = golden(&format!("autoencoder_kl_{name}_diffusers.safetensors"));
        let described = save(dir.path(), name, &weights);
        let alone = dir.path().join("alone");
        std::fs::create_dir(&alone).unwrap();
        let path = alone.join("vae.safetensors");
        Weights::write(&path, &weights, &Default::default()).unwrap();
        let unstated =
            AutoencoderConfig { weights: WeightsSource::File(path.clone()), ..Default::default() };
        let error = Autoencoder::open(&unstated, &Device::Cpu).err().expect("asked").to_string();
        assert!(error.contains("autoencoder.groups"), "{error}");

        let keyed = AutoencoderConfig { groups: Some(groups), ..unstated.clone() };
        let description = {
            let WeightsSource::File(described) = &described.weights else { unreachable!() };
            let description = KlConfig::of(&Weights::read(described).unwrap(), &Default::default());
            serde_json::to_string(&description.unwrap()).unwrap()
        };
        let header = alone.join("header.safetensors");
        Weights::write(&header, &weights, &[(CONFIG_KEY.into(), description)].into()).unwrap();
        let written = AutoencoderConfig { weights: WeightsSource::File(header), ..unstated };
        let folder = WeightsSource::File(dir.path().to_owned());
        let folder = AutoencoderConfig { weights: folder, ..AutoencoderConfig::default() };
        let mut scales = Vec::new();
        for config in [&described, &keyed, &written, &folder] {
            let autoencoder = Autoencoder::open(config, &Device::Cpu).unwrap();
            let mean = autoencoder.encode(&images()).unwrap().mean;
            let error = relative_error(&mean, &golden["mean"]);
            assert!(error < 1e-4, "{name}: {error}");
            assert_eq!(autoencoder.identity().groups, Some(groups));
            scales.push((autoencoder.identity().scale, autoencoder.identity().shift));
        }
        assert!(scales[0].0.is_some() && scales[0] == scales[2] && scales[0] == scales[3]);
        assert_eq!(scales[1], (None, 0.0));

        let other = AutoencoderConfig { groups: Some(groups / 2), ..keyed.clone() };
        let [right, other] = [&keyed, &other].map(|config| {
            let autoencoder = Autoencoder::open(config, &Device::Cpu).unwrap();
            let error = autoencoder.identity().normalization().unwrap_err().to_string();
            assert!(error.contains("autoencoder.scale"), "{error}");
            autoencoder.identity().clone()
        });
        let mut recorded = serde_json::json!(right);
        assert!(right.made(&recorded) && !other.made(&recorded));
        // As datasets recorded it before groups were a part of it.
        recorded.as_object_mut().unwrap().remove("groups");
        assert!(right.made(&recorded) && right.beside(&recorded) == recorded);
    }
}

#[test]
fn a_description_of_another_network_is_refused_or_not_taken() {
    let (_, weights) = golden("autoencoder_kl_f4_diffusers.safetensors");
    let opened = |description: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = save(dir.path(), "f4", &weights);
        std::fs::write(dir.path().join("config.json"), description).unwrap();
        Autoencoder::open(&config, &Device::Cpu)
    };
    let refused = |description: &str| opened(description).err().expect("refused").to_string();
    let error = refused(r#"{"block_out_channels": [8, 16], "norm_num_groups": 4}"#);
    assert!(error.contains("block_out_channels is [8,16]"), "{error}");
    let error = refused(r#"{"act_fn": "mish", "norm_num_groups": 4}"#);
    assert!(error.contains("act_fn"), "{error}");
    let error = refused(r#"{"_class_name": "UNet2DModel", "norm_num_groups": 4}"#);
    assert!(error.contains("autoencoder.groups"), "{error}");
    // Normalised channel by channel: its one number is not the scale of anything.
    let by_channel =
        r#"{"norm_num_groups": 4, "scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4]}"#;
    assert_eq!(opened(by_channel).unwrap().identity().scale, None);
}

/// Pipelines and trainers keep the autoencoder among other networks, under names of their own.
#[test]
fn an_autoencoder_is_found_under_any_prefix() {
    let (_, weights) = golden("autoencoder_kl_f4_ldm.safetensors");
    for prefix in ["first_stage_model.", "vae.", "module.", "autoencoder._orig_mod."] {
        let dir = tempfile::tempdir().unwrap();
        let renamed = weights.clone().into_iter().map(|(key, w)| (format!("{prefix}{key}"), w));
        let mut checkpoint: BTreeMap<_, _> = renamed.collect();
        let other = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        checkpoint.insert("model.diffusion_model.out.2.bias".into(), other);
        let config = save(dir.path(), "f4", &checkpoint);
        let autoencoder = Autoencoder::open(&config, &Device::Cpu).unwrap();
        assert_eq!(autoencoder.identity().channels, 4, "{prefix}");
    }
    let dir = tempfile::tempdir().unwrap();
    let decoder = weights.into_iter().filter(|(key, _)| key.starts_with("decoder")).collect();
    let config = save(dir.path(), "f4", &decoder);
    let error = Autoencoder::open(&config, &Device::Cpu).err().expect("refused").to_string();
    assert!(error.contains("keys begin with `decoder.conv_in.bias`"), "{error}");
}

#[test]
fn missing_and_surplus_keys_are_named() {
    let (_, weights) = golden("autoencoder_kl_f4_ldm.safetensors");
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let dir = tempfile::tempdir().unwrap();
        let mut weights = weights.clone();
        change(&mut weights);
        let config = save(dir.path(), "f4", &weights);
        Autoencoder::open(&config, &Device::Cpu).err().expect("refused").to_string()
    };
    let error = refused(&|w| drop(w.remove("decoder.up.0.block.1.conv2.bias")));
    let lacks = "safetensors: weights lack `decoder.up_blocks.2.resnets.1.conv2.bias` [8]";
    assert!(error.ends_with(lacks), "{error}");
    let error = refused(&|w| {
        let bias = w["encoder.conv_in.bias"].clone();
        w.insert("encoder.conv_in.gain".into(), bias);
    });
    assert!(error.contains("the first is `encoder.conv_in.gain`"), "{error}");
    let error = refused(&|w| {
        let bias = (&w["encoder.conv_in.bias"] * f64::NAN).unwrap();
        w.insert("encoder.conv_in.bias".into(), bias);
    });
    assert!(error.contains("`encoder.conv_in.bias` holds values that are infinite"), "{error}");
}

#[test]
fn logvar_is_clamped() {
    let config = tiny_config();
    let (network, params) =
        Params::init(3, DType::F32, &Device::Cpu, |scope| KlNetwork::new(scope, &config)).unwrap();
    let bias = params.get("quant_conv.bias").unwrap();
    let extremes = [0.0f32, 0.0, 500.0, -500.0];
    bias.set(&Tensor::new(&extremes, &Device::Cpu).unwrap()).unwrap();
    let logvar = network.encode(&images()).unwrap().logvar.unwrap();
    let channel = |c: usize| logvar.narrow(1, c, 1).unwrap().flatten_all().unwrap();
    assert!(channel(0).to_vec1::<f32>().unwrap().iter().all(|&v| v == 20.0));
    assert!(channel(1).to_vec1::<f32>().unwrap().iter().all(|&v| v == -30.0));
}

fn tiny_config() -> KlConfig {
    KlConfig {
        block_out_channels: vec![4, 8],
        layers_per_block: 1,
        latent_channels: 2,
        norm_num_groups: 2,
        ..Default::default()
    }
}

/// Every parameter receives a gradient, the one that central differences of the loss give.
#[test]
fn gradients_agree_with_finite_differences() {
    let config = tiny_config();
    let (network, params) =
        Params::init(5, DType::F32, &Device::Cpu, |scope| KlNetwork::new(scope, &config)).unwrap();
    let noise = Tensor::from_vec(uniform("noise", 3 * 2 * 8 * 12), (3, 2, 8, 12), &Device::Cpu);
    let noise = noise.unwrap();
    let transform = Transform { height: 5, width: 7, turns: 1 };
    let images = images();
    let loss = || {
        let posterior = network.encode(&images).unwrap();
        let latents = transform.apply(&posterior.sample(&noise).unwrap(), 1).unwrap();
        let decoded = network.decode(&latents).unwrap().sqr().unwrap().mean_all().unwrap();
        (decoded + posterior.logvar.unwrap().sqr().unwrap().mean_all().unwrap()).unwrap()
    };
    let grads = loss().backward().unwrap();
    let mut slopes = Vec::new();
    for (name, var) in params.iter() {
        let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("no gradient of {name}"));
        let direction =
            Tensor::from_vec(uniform(name, var.elem_count()), var.shape(), &Device::Cpu).unwrap();
        let slope = (grad * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let value = var.as_tensor().copy().unwrap();
        let step = 1e-3;
        let at = |step: f64| {
            var.set(&(&value + (&direction * step).unwrap()).unwrap()).unwrap();
            loss().to_scalar::<f32>().unwrap()
        };
        let expected = (at(step) - at(-step)) / (2.0 * step) as f32;
        var.set(&value).unwrap();
        slopes.push((name, slope, expected));
    }
    // The loss is f32, so errors are judged by the size of all slopes.
    let square = slopes.iter().map(|(_, _, expected)| expected.powi(2)).sum::<f32>();
    let scale = (square / slopes.len() as f32).sqrt();
    for (name, slope, expected) in slopes {
        assert!(slope != 0.0, "{name} has no slope");
        assert!(
            (slope - expected).abs() < 0.1 * scale,
            "{name}: {slope} for {expected} of {scale}"
        );
    }
}

#[test]
fn images_that_do_not_fit_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (_, weights) = golden("autoencoder_kl_f8_diffusers.safetensors");
    let autoencoder = Autoencoder::open(&save(dir.path(), "f8", &weights), &Device::Cpu).unwrap();
    let odd = Tensor::zeros((1, 3, 20, 24), DType::F32, &Device::Cpu).unwrap();
    let error = autoencoder.encode(&odd).unwrap_err().to_string();
    assert!(error.contains("divisible by 8"), "{error}");
    let error = autoencoder.decode(&odd).unwrap_err().to_string();
    assert!(error.contains("decodes [B, 16, h, w]"), "{error}");
}
