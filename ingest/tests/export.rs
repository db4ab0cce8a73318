//! Exports to PNG files, whole and resumed; EXIF orientation.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lapflow_ingest::{Exported, IngestConfig, Source, export};

fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8, y as u8, shade]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("PNG into memory");
    bytes.into_inner()
}

fn class_folders(root: &Path) {
    for (key, content) in [
        ("a/1.jpg", png(1)),
        ("a/1.png", png(2)),
        ("b/2.JPEG", png(3)),
        ("b/half.png", png(4)[..90].to_vec()),
    ] {
        fs::create_dir_all(root.join(key).parent().expect("a folder")).expect("a folder");
        fs::write(root.join(key), content).expect("a file");
    }
}

async fn run(config: &IngestConfig, out: &Path) -> Result<Exported, String> {
    let source = Arc::new(Source::open(config).await.map_err(|error| error.to_string())?);
    let mut last = (0, 0);
    let exported = export(&source, out, |done, total| {
        last = (done, total);
        ControlFlow::Continue(())
    })
    .await;
    let exported = exported.map_err(|error| error.to_string())?;
    assert_eq!(last, (4, 4));
    Ok(exported)
}

#[tokio::test]
async fn exports_keep_the_layout_resume_and_list_their_skips() {
    let folder = tempfile::tempdir().expect("a folder");
    let (images, out) = (folder.path().join("in"), folder.path().join("out"));
    class_folders(&images);
    let config = IngestConfig {
        source: images.display().to_string(),
        size: 32,
        flip: true,
        skip_fraction_max: 0.5,
        ..IngestConfig::default()
    };
    let first = run(&config, &out).await.expect("exports");
    assert_eq!((first.written, first.present, first.skips.len()), (6, 0, 1));
    for (name, shade) in [("a/1.jpg.png", 1), ("a/1.png.png", 2), ("b/2.png", 3)] {
        let pixel = |name: &str| image::open(out.join(name)).expect(name).into_rgb8()[(0, 5)];
        assert_eq!(pixel(name).0, [0, 5, shade]);
        assert_eq!(pixel(&format!("{name}.flipped.png")).0, [31, 5, shade]);
    }
    let skipped = fs::read_to_string(out.join("skipped.jsonl")).expect("a report");
    let expected = r#"{"id":3,"key":"b/half.png","reason":"truncated","format":"png"}"#;
    assert_eq!(skipped.trim_end(), expected);

    fs::remove_file(out.join("b/2.png.flipped.png")).expect("removed");
    fs::write(images.join("b/half.png"), png(4)).expect("repaired");
    let second = run(&config, &out).await.expect("resumes");
    assert_eq!((second.written, second.present, second.skips.len()), (4, 2, 0));
    assert_eq!(fs::read_to_string(out.join("skipped.jsonl")).expect("a report"), "");

    let error = run(&IngestConfig { size: 16, ..config }, &out).await.expect_err("refused");
    assert!(
        error.starts_with(&format!("{}: it was made with ", out.join("ingest.json").display()))
    );
}

#[tokio::test]
async fn an_export_can_be_ended_and_continued() {
    let folder = tempfile::tempdir().expect("a folder");
    let (images, out) = (folder.path().join("in"), folder.path().join("out"));
    class_folders(&images);
    fs::remove_file(images.join("b/half.png")).expect("removed");
    let source = images.display().to_string();
    let config = IngestConfig { source, size: 32, ..IngestConfig::default() };
    let source = Arc::new(Source::open(&config).await.expect("opens"));
    let after_one = |done, _| match done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let first = export(&source, &out, after_one).await.expect("exports");
    assert!(first.stopped && first.written == 1, "{first:?}");
    let rest = export(&source, &out, |_, _| ControlFlow::Continue(())).await.expect("exports");
    assert!(!rest.stopped && rest.present >= 1 && rest.present + rest.written == 3, "{rest:?}");
}

#[tokio::test]
async fn a_list_of_files_elsewhere_is_written_below_the_output_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("lists")).expect("a folder");
    fs::write(folder.path().join("one.png"), png(1)).expect("a file");
    let list = folder.path().join("lists/all.txt");
    fs::write(&list, "../one.png\n").expect("a list");
    let config = IngestConfig { source: list.display().to_string(), ..IngestConfig::default() };
    let source = Arc::new(Source::open(&config).await.expect("opens"));
    let out = folder.path().join("out");
    export(&source, &out, |_, _| ControlFlow::Continue(())).await.expect("exports");
    assert!(out.join("one.png").exists());
}

/// `jpeg` with an EXIF segment that says `orientation`.
#[tokio::test]
async fn no_two_images_share_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (images, out) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir(&images).expect("a folder");
    let names = ["a.jpg", "a.jpg.png", "a.jpg.png.jpg", "a.png"];
    for (name, shade) in names.iter().zip(1..) {
        fs::write(images.join(name), png(shade)).expect("a file");
    }
    let config =
        IngestConfig { source: images.display().to_string(), size: 32, ..IngestConfig::default() };
    assert_eq!(run(&config, &out).await.expect("exports").written, 4);
    let mut shades: Vec<u8> = fs::read_dir(&out)
        .expect("the output")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "png"))
        .map(|path| image::open(path).expect("a PNG").into_rgb8()[(0, 5)].0[2])
        .collect();
    shades.sort_unstable();
    assert_eq!(shades, [1, 2, 3, 4]);
    assert_eq!(run(&config, &out).await.expect("resumes").present, 4);
}

fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() + 2) as u8;
    [&jpeg[..2], &[0xff, 0xe1, 0, length], &exif, &jpeg[2..]].concat()
}

#[tokio::test]
async fn exif_orientation_is_applied_only_when_asked_for() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode/rgb-444.jpg");
    let upright = fs::read(golden).expect("a golden");
    let turned = async |orientation: u8, exif_orientation: bool| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("one.jpg");
        fs::write(&file, with_orientation(&upright, orientation)).expect("a file");
        let config = IngestConfig {
            source: folder.path().display().to_string(),
            size: 37,
            exif_orientation,
            ..IngestConfig::default()
        };
        let source = Arc::new(Source::open(&config).await.expect("opens"));
        let out = folder.path().join("out");
        let done = export(&source, &out, |_, _| ControlFlow::Continue(())).await.expect("exports");
        assert_eq!(done.unturned, usize::from(orientation != 1 && !exif_orientation));
        image::open(folder.path().join("out/one.png")).expect("a PNG").into_rgb8()
    };
    use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
    // 45x37 centred on 37: the crop drops four columns on each side, so it commutes with turns.
    let base = turned(1, true).await;
    let expected = [
        base.clone(),
        flip_horizontal(&base),
        rotate180(&base),
        flip_vertical(&base),
        flip_horizontal(&rotate90(&base)),
        rotate90(&base),
        flip_horizontal(&rotate270(&base)),
        rotate270(&base),
    ];
    for (orientation, expected) in (1..).zip(expected) {
        assert!(turned(orientation, true).await == expected, "orientation {orientation}");
        assert!(turned(orientation, false).await == base, "orientation {orientation} ignored");
    }
}
