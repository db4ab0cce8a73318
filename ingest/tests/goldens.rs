//! Decodes and crops against PIL's; `golden/generate.py` made the files.

use std::path::{Path, PathBuf};

use lapflow_ingest::{Crop, Limits, RgbImage, crop, decode, decode_to_cover};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Goldens are read by the `image` crate alone, so that no error of ours cancels out.
fn reference(path: &Path) -> RgbImage {
    let image = image::open(path).expect("a golden").into_rgb8();
    RgbImage { width: image.width(), height: image.height(), pixels: image.into_raw() }
}

/// Fractions of samples that differ by more than 0, 1, and 3 levels, and the greatest.
fn difference(ours: &RgbImage, pil: &RgbImage) -> ([f64; 3], u8) {
    assert_eq!((ours.width, ours.height), (pil.width, pil.height));
    let levels: Vec<u8> =
        ours.pixels.iter().zip(&pil.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
    let beyond = |level| levels.iter().filter(|&&d| d > level).count() as f64 / levels.len() as f64;
    ([beyond(0), beyond(1), beyond(3)], levels.iter().copied().max().unwrap_or(0))
}

fn decoded(name: &str) -> (RgbImage, RgbImage) {
    let path = folder("decode").join(name);
    let bytes = std::fs::read(&path).expect("a golden");
    let ours =
        decode(&bytes, &Limits::default()).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    (ours, reference(&folder("decode").join(format!("{name}.rgb.png"))))
}

#[test]
fn images_decode_as_in_pil() {
    let names = [
        "rgb-444.jpg",
        "rgb-422.jpg",
        "rgb-420.jpg",
        "progressive.jpg",
        "restarts.jpg",
        "gray.jpg",
        "tiny.jpg",
        "cmyk.jpg",
        "ycck.jpg",
        "adobe-rgb.jpg",
        "profile.jpg",
        "rgb.png",
        "palette.png",
        "palette-transparent.png",
        "palette-1bit.png",
        "gray.png",
        "bilevel.png",
        "gray-alpha.png",
        "rgba.png",
        "gray16.png",
        "really-png.jpeg",
        "lossless.webp",
        "alpha.webp",
    ];
    for name in names {
        let (ours, pil) = decoded(name);
        assert!(ours == pil, "{name}: {:?}", difference(&ours, &pil));
    }
}

#[test]
fn a_ppm_is_its_pixels() {
    let image = decode(b"P6\n# by hand\n2 1\n255\nabcdef", &Limits::default()).expect("decodes");
    assert_eq!((image.width, image.height, image.pixels.as_slice()), (2, 1, &b"abcdef"[..]));
}

#[test]
fn lossy_webp_decodes_within_the_decoders_rounding() {
    let (ours, pil) = decoded("lossy.webp");
    let ([_, beyond_1, beyond_3], worst) = difference(&ours, &pil);
    assert!(beyond_1 < 0.11 && beyond_3 == 0.0, "{beyond_1} beyond 1, worst {worst}");
}

#[test]
fn jpegs_are_reduced_as_by_libjpeg() {
    let names =
        ["rgb-444.jpg", "rgb-422.jpg", "rgb-420.jpg", "progressive.jpg", "gray.jpg", "ycck.jpg"];
    for name in names {
        let path = folder("decode").join(name);
        let bytes = std::fs::read(&path).expect("a golden");
        // The short side is 37 pixels.
        for (short_side, divisor) in [(18, 2), (10, 2), (9, 4), (4, 8), (1, 8)] {
            let ours = decode_to_cover(&bytes, &Limits::default(), short_side).expect(name);
            let pil = reference(&folder("decode").join(format!("{name}.{divisor}.rgb.png")));
            assert!(ours == pil, "{name} / {divisor}: {:?}", difference(&ours, &pil));
        }
        let whole = decode_to_cover(&bytes, &Limits::default(), 19).expect(name);
        assert!(whole == decode(&bytes, &Limits::default()).expect(name), "{name}");
    }
    let png = std::fs::read(folder("decode").join("rgb.png")).expect("a golden");
    assert_eq!(decode_to_cover(&png, &Limits::default(), 4).expect("decodes").width, 45);
}

#[test]
fn crops_agree_with_pil_but_for_roundings() {
    let crops = [("adm", Crop::Adm), ("resize", Crop::Resize), ("center", Crop::Center)];
    for source in ["wide", "tall", "small", "strip"] {
        let image = reference(&folder("crop").join(format!("{source}.png")));
        for size in [24, 48] {
            for (name, kind) in crops {
                let ours = crop(image.clone(), size, kind, 0);
                let pil = reference(&folder("crop").join(format!("{source}.{name}.{size}.png")));
                let ([beyond_0, beyond_1, _], worst) = difference(&ours, &pil);
                // Linear gradients put many samples on the border of two levels.
                assert!(
                    worst <= 2 && beyond_1 < 0.001 && beyond_0 < 0.1,
                    "{source} {name} {size}: {beyond_0} {beyond_1} {worst}"
                );
            }
        }
    }
}

#[test]
fn random_crops_are_repeatable_varied_and_of_the_asked_size() {
    let image = reference(&folder("crop/wide.png"));
    let crops: Vec<_> = (0..20).map(|seed| crop(image.clone(), 40, Crop::Random, seed)).collect();
    assert!(
        crops.iter().all(|crop| (crop.width, crop.height, crop.pixels.len()) == (40, 40, 4800))
    );
    assert!(
        (0..20).all(|seed| crops[seed as usize] == crop(image.clone(), 40, Crop::Random, seed))
    );
    let mut distinct = crops;
    distinct.sort_by(|a, b| a.pixels.cmp(&b.pixels));
    distinct.dedup();
    assert!(distinct.len() > 15, "{} distinct crops of 20", distinct.len());
}

#[test]
fn extreme_shapes_crop_without_large_buffers() {
    for (width, height) in [(1, 1), (1, 9000), (9000, 1), (3, 2), (257, 256)] {
        let pixels = (0..3 * width * height).map(|i| (i % 251) as u8).collect();
        let image = RgbImage { width, height, pixels };
        for kind in [Crop::Adm, Crop::Resize, Crop::Center, Crop::Random] {
            let square = crop(image.clone(), 64, kind, 7);
            assert_eq!(square.pixels.len(), 64 * 64 * 3, "{width}x{height} {kind:?}");
        }
    }
}
