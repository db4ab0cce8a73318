//! Every container of weights, whole and damaged.

mod common;

use candle_core::DType;
use common::{golden_path, uniform};
use half::{bf16, f16};
use lapflow_model::weights::Weights;

const FILES: [&str; 5] =
    ["zip.ckpt", "zip_protocol4.pth", "legacy.ckpt", "legacy_protocol4.bin", "plain.safetensors"];

#[test]
fn every_container_gives_the_same_tensors() {
    for file in FILES {
        let weights = Weights::read(golden_path("weights").join(file)).expect(file);
        let names: Vec<_> = weights.tensors.keys().map(String::as_str).collect();
        let expected = [
            "layer.bf16",
            "layer.f16",
            "layer.f32",
            "layer.f64",
            "offset",
            "parameter",
            "steps",
            "strided",
        ];
        assert_eq!(names, expected, "{file}");
        assert_eq!(weights.sha256.len(), 64);
        let get = |name: &str| &weights.tensors[name];
        let flat = |name: &str| get(name).flatten_all().unwrap();
        let value = uniform("f32", 24);
        assert_eq!(get("layer.f32").dims(), [2, 3, 4]);
        assert_eq!(flat("layer.f32").to_vec1::<f32>().unwrap(), value, "{file}");
        let halves: Vec<_> = uniform("f16", 24).into_iter().map(f16::from_f32).collect();
        assert_eq!(flat("layer.f16").to_vec1::<f16>().unwrap(), halves, "{file}");
        let brains: Vec<_> = uniform("bf16", 24).into_iter().map(bf16::from_f32).collect();
        assert_eq!(flat("layer.bf16").to_vec1::<bf16>().unwrap(), brains, "{file}");
        let doubles: Vec<_> = uniform("f64", 24).into_iter().map(f64::from).collect();
        assert_eq!(flat("layer.f64").to_vec1::<f64>().unwrap(), doubles, "{file}");
        assert_eq!(flat("parameter").to_vec1::<f32>().unwrap(), uniform("parameter", 24));
        assert_eq!(get("steps").to_scalar::<i64>().unwrap(), 7);
    }
}

#[test]
fn strides_and_offsets_are_honoured() {
    let (strided, offset) = (uniform("strided", 24), uniform("offset", 24));
    for file in FILES {
        let weights = Weights::read(golden_path("weights").join(file)).expect(file);
        let got = weights.tensors["strided"].to_vec2::<f32>().unwrap();
        for (r, row) in got.iter().enumerate() {
            for (c, value) in row.iter().enumerate() {
                assert_eq!(*value, strided[c * 6 + r], "{file} strided[{r}][{c}]");
            }
        }
        let got = weights.tensors["offset"].to_vec2::<f32>().unwrap();
        assert_eq!((got.len(), got[0].len()), (3, 2));
        for (r, row) in got.iter().enumerate() {
            for (c, value) in row.iter().enumerate() {
                assert_eq!(*value, offset[(r + 2) * 4 + c + 1], "{file} offset[{r}][{c}]");
            }
        }
    }
}

/// A file cut anywhere is an error, never a panic and never a wrong tensor.
#[test]
fn truncated_files_are_errors() {
    for file in FILES {
        let bytes = std::fs::read(golden_path("weights").join(file)).unwrap();
        for cut in (0..bytes.len()).step_by(37) {
            let error = Weights::from_bytes(file, &bytes[..cut]).expect_err(file).to_string();
            assert!(error.starts_with(file), "{error}");
        }
    }
}

/// Flipped bytes may change values, but they neither panic nor allocate without bound.
#[test]
fn damaged_files_do_not_panic() {
    for file in FILES {
        let bytes = std::fs::read(golden_path("weights").join(file)).unwrap();
        for (at, flip) in (0..bytes.len()).step_by(3).zip([0x01u8, 0x80, 0xff].iter().cycle()) {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            if let Ok(weights) = Weights::from_bytes(file, &damaged) {
                assert!(weights.tensors.values().map(|t| t.elem_count()).sum::<usize>() < 1000);
            }
        }
    }
}

#[test]
fn nothing_is_executed_and_strangers_are_named() {
    assert!(Weights::read(golden_path("weights/zip.ckpt")).is_ok());
    assert!(!std::path::Path::new("pickle_was_executed").exists());
    let error = Weights::from_bytes("notes.txt", b"twelve bytes and more").unwrap_err();
    let text = "notes.txt: neither safetensors nor a PyTorch checkpoint, but text: \
                \"twelve bytes and more\"";
    assert_eq!(error.to_string(), text);
    for (bytes, kind) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:a1\nsize 3\n", "Git LFS pointer"),
        ("<!DOCTYPE html><html><head></head></html>", "a web page"),
        ("\u{feff}{\n  \"_class_name\": \"AutoencoderKL\"\n}", "JSON"),
    ] {
        let error = Weights::from_bytes("x", bytes.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(kind), "{error}");
    }
    let error = Weights::read("stabilityai/sd-vae-ft-ema").unwrap_err().to_string();
    assert!(error.contains("a name on a hub"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = Weights::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("diffusion_pytorch_model.safetensors"), "{error}");
    let error = Weights::read("no/such.pth").unwrap_err().to_string();
    assert!(error.starts_with("no/such.pth: "), "{error}");
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.safetensors");
    let weights = Weights::read(golden_path("weights/zip.ckpt")).unwrap();
    let metadata = [("scale".to_owned(), "0.5".to_owned())].into();
    Weights::write(&path, &weights.tensors, &metadata).unwrap();
    let copy = Weights::read(&path).unwrap();
    assert_eq!(copy.metadata, metadata);
    assert_eq!(copy.tensors.len(), weights.tensors.len());
    for (name, tensor) in &weights.tensors {
        assert_eq!(
            (copy.tensors[name].dtype(), copy.tensors[name].dims()),
            (tensor.dtype(), tensor.dims())
        );
        let as_f64 = |t: &candle_core::Tensor| {
            t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        assert_eq!(as_f64(&copy.tensors[name]), as_f64(tensor), "{name}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a partial file is left over");
}
