//! Tiled runs against whole ones.

mod common;

use candle_core::{Device, Tensor};
use common::{golden, relative_error, uniform};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, Tiling, WeightsSource};
use lapflow_model::weights::Weights;

fn noise(shape: [usize; 4]) -> Tensor {
    Tensor::from_vec(uniform("noise", shape.iter().product()), &shape, &Device::Cpu).unwrap()
}

fn open(golden_name: &str) -> Autoencoder {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    Weights::write(&path, &golden(golden_name).1, &Default::default()).unwrap();
    let config = AutoencoderConfig { weights: WeightsSource::File(path), ..Default::default() };
    Autoencoder::open(&config, &Device::Cpu).unwrap()
}

/// TAESD is convolutions only: with a margin as wide as they reach, tiles change nothing.
#[test]
fn convolutions_alone_are_tiled_exactly() {
    let autoencoder = open("autoencoder_taesd.safetensors");
    let images = noise([1, 3, 32, 560]);
    let tiling = Tiling { tile: 24, margin: 20 };
    let whole = autoencoder.encode(&images).unwrap().mean;
    let tiled = autoencoder.encode_tiled(&images, &tiling).unwrap().mean;
    let error = relative_error(&tiled, &whole);
    assert!(error < 1e-5, "encoding: {error}");
    let tall = images.transpose(2, 3).unwrap().contiguous().unwrap();
    let tiled_tall = autoencoder.encode_tiled(&tall, &tiling).unwrap().mean;
    let error = relative_error(&tiled_tall, &autoencoder.encode(&tall).unwrap().mean);
    assert!(error < 1e-5, "encoding a tall image: {error}");
    let whole = autoencoder.decode(&tiled).unwrap();
    let error = relative_error(&autoencoder.decode_tiled(&tiled, &tiling).unwrap(), &whole);
    assert!(error < 1e-5, "decoding: {error}");

    let narrow = Tiling { tile: 24, margin: 1 };
    let error = relative_error(&autoencoder.decode_tiled(&tiled, &narrow).unwrap(), &whole);
    assert!(error > 1e-5, "a margin of one latent hides the seams: {error}");
}

#[test]
fn small_images_are_not_cut() {
    let autoencoder = Autoencoder::open(&AutoencoderConfig::default(), &Device::Cpu).unwrap();
    let images = noise([2, 3, 64, 64]);
    let tiling = Tiling { tile: 16, margin: 4 };
    let whole = autoencoder.encode(&images).unwrap();
    let tiled = autoencoder.encode_tiled(&images, &tiling).unwrap();
    assert_eq!(relative_error(&tiled.mean, &whole.mean), 0.0);
    assert_eq!(tiled.logvar.unwrap().dims(), whole.logvar.unwrap().dims());
    let wide = noise([1, 3, 64, 192]);
    let posterior = autoencoder.encode_tiled(&wide, &tiling).unwrap();
    assert_eq!(posterior.mean.dims(), [1, 4, 16, 48]);
    assert_eq!(posterior.logvar.unwrap().dims(), [1, 4, 16, 48]);
    assert_eq!(autoencoder.decode_tiled(&posterior.mean, &tiling).unwrap().dims(), wide.dims());
}

/// The tiling of the config is what encoding and decoding do, and an explicit one equals it.
#[test]
fn the_config_decides_what_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let weights = golden("autoencoder_taesd.safetensors").1;
    Weights::write(&path, &weights, &Default::default()).unwrap();
    let open = |tiling| {
        let weights = WeightsSource::File(path.clone());
        let config = AutoencoderConfig { weights, tiling, ..Default::default() };
        Autoencoder::open(&config, &Device::Cpu).unwrap()
    };
    let tiling = Tiling { tile: 8, margin: 2 };
    let (whole, cut) = (open(None), open(Some(tiling)));
    assert_eq!(
        whole.identity(),
        cut.identity(),
        "how images are cut is not whose latents they are"
    );
    let images = noise([1, 3, 64, 192]);
    let latents = cut.encode(&images).unwrap().mean;
    let explicit = whole.encode_tiled(&images, &tiling).unwrap().mean;
    assert_eq!(relative_error(&latents, &explicit), 0.0);
    assert!(relative_error(&latents, &whole.encode(&images).unwrap().mean) > 1e-5, "was not cut");
    let decoded = cut.decode(&latents).unwrap();
    let explicit = whole.decode_tiled(&latents, &tiling).unwrap();
    assert_eq!(relative_error(&decoded, &explicit), 0.0);
    assert!(relative_error(&decoded, &whole.decode(&latents).unwrap()) > 1e-5, "was not cut");
    let odd = noise([1, 3, 64, 190]);
    let error = cut.encode(&odd).unwrap_err().to_string();
    assert!(error.contains("divisible by 8"), "{error}");
}
