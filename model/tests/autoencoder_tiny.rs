//! The tiny autoencoders against diffusers, a PyTorch module, and real weights on real faces.

mod common;

use candle_core::{DType, Device, Tensor};
use common::{golden, relative_error};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use lapflow_model::weights::Weights;
use std::path::{Path, PathBuf};

fn open(weights: WeightsSource) -> Autoencoder {
    let config = AutoencoderConfig { weights, ..Default::default() };
    Autoencoder::open(&config, &Device::Cpu).unwrap()
}

#[test]
fn agrees_with_pytorch() {
    let dir = tempfile::tempdir().unwrap();
    for (name, channels) in [("taesd", 4), ("taesd3", 16), ("taef2", 32)] {
        let (golden, weights) = golden(&format!("autoencoder_{name}.safetensors"));
        let prefix = if name == "taesd3" { "module.vae." } else { "" };
        let weights = weights.into_iter().map(|(key, w)| (format!("{prefix}{key}"), w)).collect();
        let path = dir.path().join(name);
        Weights::write(&path, &weights, &Default::default()).unwrap();
        let autoencoder = open(WeightsSource::File(path));
        assert_eq!((autoencoder.identity().channels, autoencoder.identity().factor), (channels, 8));
        let latents = autoencoder.encode(&golden["images"]).unwrap().mean;
        let decoded = autoencoder.decode(&golden["latents"]).unwrap();
        let errors = [
            relative_error(&latents, &golden["latents"]),
            relative_error(&decoded, &golden["decoded"]),
        ];
        eprintln!("{name}: relative errors {errors:?}");
        assert!(errors.iter().all(|&error| error < 1e-4), "{name}: {errors:?}");
    }
}

#[test]
fn missing_and_surplus_keys_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.safetensors");
    let config =
        AutoencoderConfig { weights: WeightsSource::File(path.clone()), ..Default::default() };
    let (_, weights) = golden("autoencoder_taef2.safetensors");
    let refused = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        let mut weights = weights.clone();
        change(&mut weights);
        Weights::write(&path, &weights, &Default::default()).unwrap();
        Autoencoder::open(&config, &Device::Cpu).err().expect("refused").to_string()
    };
    let error = refused(&|w| drop(w.remove("decoder.8.conv.2.bias")));
    assert_eq!(error, "weights lack `8.conv.2.bias` [64]");
    let error = refused(&|w| {
        let bias = w["encoder.0.bias"].clone();
        w.insert("encoder.0.gain".into(), bias);
    });
    assert!(error.contains("the first is `0.gain`"), "{error}");
    let error = refused(&|w| {
        let bias = w["encoder.0.bias"].narrow(0, 0, 32).unwrap();
        w.insert("encoder.0.bias".into(), bias);
    });
    assert_eq!(error, "`0.bias` has shape [32], the network wants [64]");
}

/// The published TAEF2 weights on real faces, as the README states it.
#[test]
fn reconstructs_real_faces() {
    let Some(data) = std::env::var_os("LAPFLOW_TEST_DATA").map(PathBuf::from) else {
        eprintln!("skipped: LAPFLOW_TEST_DATA is not set");
        return;
    };
    let weights = data.join("../weights");
    let autoencoder = open(WeightsSource::Pair {
        encoder: weights.join("taef2_encoder.pth"),
        decoder: weights.join("taef2_decoder.pth"),
    });
    for (folder, size, count, floor) in [("celebahq-56", 256, 8, 33.0), ("lfw-112", 112, 16, 29.0)]
    {
        let images = faces(&data.join(folder), size, count);
        let latents = autoencoder.encode(&images).unwrap().mean;
        assert_eq!(latents.dims(), [count, 32, size / 8, size / 8]);
        let decoded = autoencoder.decode(&latents).unwrap().clamp(-1f32, 1f32).unwrap();
        let errors = (decoded - &images).unwrap().sqr().unwrap().flatten_from(1).unwrap();
        let errors = errors.mean(1).unwrap().to_vec1::<f32>().unwrap();
        let psnr = errors.iter().map(|mse| 10.0 * (4.0 / mse).log10()).sum::<f32>() / count as f32;
        eprintln!("{folder} at {size}: {psnr:.2} dB over {count} images");
        assert!(psnr > floor, "{folder}: {psnr} dB");
    }
}

/// The first `count` square JPEGs of a folder, box-filtered to `size`, in [-1, 1].
fn faces(folder: &Path, size: usize, count: usize) -> Tensor {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let images: Vec<_> = paths.iter().take(count).map(|path| face(path, size)).collect();
    Tensor::stack(&images, 0).unwrap()
}

fn face(path: &Path, size: usize) -> Tensor {
    let bytes = std::fs::read(path).unwrap();
    let mut decoder = zune_jpeg::JpegDecoder::new(std::io::Cursor::new(bytes));
    let pixels = decoder.decode().unwrap();
    let (width, height) = decoder.dimensions().unwrap();
    let (factor, shape) = (width / size, (size, height / size, size, width / size, 3));
    assert_eq!((width, height), (factor * size, factor * size));
    let image = Tensor::from_vec(pixels, shape, &Device::Cpu).unwrap();
    let image = image.to_dtype(DType::F32).unwrap().mean(3).unwrap().mean(1).unwrap();
    (image.permute((2, 0, 1)).unwrap() / 127.5).unwrap().affine(1.0, -1.0).unwrap()
}
