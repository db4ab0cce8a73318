//! Image sets: what is written is read back, and what is broken is named.

use lapflow_sample::images::npy::{Element, Header};
use lapflow_sample::images::npz::{NpzFile, write_arrays};
use lapflow_sample::images::png::write_png;
use lapflow_sample::images::{Compression, NpzImages, NpzWriter};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

fn image(rng: &mut ChaCha8Rng, bytes: usize) -> Vec<u8> {
    let mut pixels = vec![0; bytes];
    rng.fill_bytes(&mut pixels);
    pixels
}

fn read(path: &Path) -> Vec<Vec<u8>> {
    let mut images = Vec::new();
    NpzImages::open(path)
        .unwrap()
        .for_each(|_, pixels| {
            images.push(pixels.to_vec());
            Ok(())
        })
        .unwrap();
    images
}

#[test]
fn npz_sets_survive_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for compression in [Compression::Stored, Compression::Deflate] {
        let path = folder.path().join(format!("{compression:?}/set.npz"));
        let (count, height, width) = (rng.random_range(1..9), 5, rng.random_range(1..30));
        let images: Vec<_> = (0..count).map(|_| image(&mut rng, height * width * 3)).collect();
        let mut writer =
            NpzWriter::create(&path, count, Element::U8, &[height, width, 3], compression).unwrap();
        assert!(!path.exists());
        images.iter().for_each(|pixels| writer.push(pixels).unwrap());
        assert!(writer.push(&images[0]).unwrap_err().to_string().contains("there are more"));
        let labels: Vec<i64> = (0..count as i64).collect();
        writer.finish(Some(&labels)).unwrap();
        assert_eq!(read(&path), images);
        let (shape, values) = NpzFile::open(&path).unwrap().floats("arr_1", 100).unwrap();
        assert_eq!((shape, values.len()), (vec![count], count));
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "a temporary file remains");
    }
}

#[test]
fn an_unfinished_set_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.npz");
    let mut writer =
        NpzWriter::create(&path, 2, Element::U8, &[2, 2, 3], Compression::Stored).unwrap();
    assert!(writer.push(&[0; 11]).unwrap_err().to_string().contains("11 bytes, not 12"));
    writer.push(&[0; 12]).unwrap();
    assert!(writer.finish(None).unwrap_err().to_string().contains("1 images of 2"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn other_arrays_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.npz");
    let refused = |element, shape: &[usize], bytes: &[u8]| {
        let header = Header { element, shape: shape.to_vec() };
        write_arrays(&path, &[("arr_0", header, bytes)]).unwrap();
        NpzImages::open(&path).err().map(|e| e.to_string())
    };
    assert!(refused(Element::F32, &[1, 1, 1, 3], &[0; 12]).unwrap().contains("F32"));
    assert!(refused(Element::U8, &[1, 1, 1, 4], &[0; 4]).unwrap().contains("[1, 1, 1, 4]"));
    assert!(refused(Element::U8, &[2, 1, 1, 3], &[0; 3]).is_none());
    let error = NpzImages::open(&path).unwrap().for_each(|_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("image 1 of 2"), "{error}");
    std::fs::write(&path, b"not a zip").unwrap();
    assert!(NpzImages::open(&path).err().unwrap().to_string().contains("set.npz"));
}

#[test]
fn pngs_are_lossless() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let path = folder.path().join("000001.png");
    let pixels = image(&mut rng, 7 * 4 * 3);
    write_png(&path, (7, 4), &pixels).unwrap();
    let back = image::open(&path).unwrap();
    assert_eq!((back.width(), back.height()), (7, 4));
    assert_eq!(back.to_rgb8().into_raw(), pixels);
    let error = write_png(&path, (7, 5), &pixels).unwrap_err().to_string();
    assert!(error.contains("84 bytes, not 105"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
