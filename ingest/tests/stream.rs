//! Sources and streams over folders and lists.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use lapflow_ingest::{Decode, IngestConfig, IngestError, Item, Outcome, Skip, SkipReason, Source};

fn png(width: u32, height: u32, shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, shade]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("PNG into memory");
    bytes.into_inner()
}

/// Two classes of five images of many sizes, three broken files, and files to pass over.
fn class_folders(root: &Path) {
    for (class, names) in [("n02", 0..5_u8), ("n01", 5..10)] {
        fs::create_dir_all(root.join(class)).expect("a folder");
        for shade in names {
            let bytes = png(20 + 40 * u32::from(shade), 300 - 20 * u32::from(shade), shade);
            fs::write(root.join(class).join(format!("{shade}.JPEG")), bytes).expect("a file");
        }
    }
    fs::write(root.join("n01/empty.jpg"), b"").expect("a file");
    fs::write(root.join("n01/text.png"), b"not an image").expect("a file");
    fs::write(root.join("n02/half.png"), &png(64, 64, 1)[..120]).expect("a file");
    fs::write(root.join("n02/notes.md"), b"passed over").expect("a file");
    fs::write(root.join("n02/.hidden.png"), b"passed over").expect("a file");
}

fn config(source: &Path) -> IngestConfig {
    IngestConfig {
        source: source.display().to_string(),
        size: 32,
        skip_fraction_max: 1.0,
        ..IngestConfig::default()
    }
}

async fn open(config: &IngestConfig) -> Arc<Source> {
    Arc::new(Source::open(config).await.unwrap_or_else(|error| panic!("{error}")))
}

async fn outcomes(source: &Arc<Source>, order: Vec<usize>) -> Vec<Outcome> {
    let stream = source.stream(order).map(|outcome| outcome.unwrap_or_else(|e| panic!("{e}")));
    stream.collect().await
}

fn images(outcomes: &[Outcome]) -> Vec<&Item> {
    outcomes
        .iter()
        .filter_map(|o| if let Outcome::Image(item) = o { Some(item) } else { None })
        .collect()
}

fn skips(outcomes: &[Outcome]) -> Vec<&Skip> {
    outcomes
        .iter()
        .filter_map(|o| if let Outcome::Skip(skip) = o { Some(skip) } else { None })
        .collect()
}

#[tokio::test]
async fn every_file_is_accounted_for_and_classes_are_sorted_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    class_folders(folder.path());
    let source = open(&config(folder.path())).await;
    assert_eq!(source.classes(), ["n01", "n02"]);
    assert_eq!(source.entries().len(), 13);
    assert!(source.entries().is_sorted_by(|a, b| a.key < b.key && a.id + 1 == b.id));

    let outcomes = outcomes(&source, (0..13).collect()).await;
    let items = images(&outcomes);
    assert_eq!(items.len(), 10);
    for item in items {
        let class = &source.classes()[item.label.expect("a class") as usize];
        assert!(item.key.starts_with(class.as_str()));
        assert_eq!((item.image.width, item.image.height, item.view), (32, 32, 0));
        let (_, name) = item.key.split_once('/').expect("class/name");
        let shade: u32 = name.trim_end_matches(".JPEG").parse().expect("a number");
        assert_eq!((item.width, item.height), (20 + 40 * shade, 300 - 20 * shade));
    }
    let reasons: Vec<String> =
        skips(&outcomes).iter().map(|skip| format!("{}: {}", skip.key, skip.reason)).collect();
    assert_eq!(
        reasons,
        [
            "n01/empty.jpg: the file is empty",
            "n01/text.png: neither JPEG, PNG, WebP nor PPM: it starts with 6e6f7420616e2069",
            "n02/half.png: truncated PNG",
        ]
    );
}

#[tokio::test]
async fn order_and_pixels_do_not_depend_on_threads_or_queue() {
    let folder = tempfile::tempdir().expect("a folder");
    class_folders(folder.path());
    let order: Vec<usize> = (0..40).map(|step| step * 7 % 13).collect();
    let mut runs = Vec::new();
    for (threads, queue_images_max) in [(1, 1), (4, 3), (3, 64)] {
        let config = IngestConfig {
            threads,
            queue_images_max,
            crop: lapflow_ingest::Crop::Random,
            decode_bytes_max: 1,
            ..config(folder.path())
        };
        runs.push(outcomes(&open(&config).await, order.clone()).await);
    }
    assert!(runs[0] == runs[1] && runs[0] == runs[2]);
    let ids = runs[0].iter().map(|outcome| match outcome {
        Outcome::Image(item) => item.id as usize,
        Outcome::Skip(skip) => skip.id as usize,
    });
    assert!(ids.eq(order));
}

#[tokio::test]
async fn flipped_views_follow_their_image() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("one.png"), png(32, 32, 9)).expect("a file");
    let source = open(&IngestConfig { flip: true, ..config(folder.path()) }).await;
    let outcomes = outcomes(&source, vec![0, 0]).await;
    let items = images(&outcomes);
    assert_eq!(items.iter().map(|item| item.view).collect::<Vec<_>>(), [0, 1, 0, 1]);
    assert_eq!(items[1].image, items[0].image.flipped());
    assert_eq!(items[0].image.pixels[..6], [0, 0, 9, 1, 0, 9]);
    assert_eq!(items[1].image.pixels[..6], [31, 0, 9, 30, 0, 9]);
    assert_eq!(items[0].label, None);
}

#[tokio::test]
async fn the_job_fails_above_the_allowed_fraction_of_skips() {
    let folder = tempfile::tempdir().expect("a folder");
    class_folders(folder.path());
    // 3 of 13: a fraction of 2/13 allows two skips, the third ends the job.
    let config = IngestConfig { skip_fraction_max: 2.0 / 13.0, ..config(folder.path()) };
    let source = open(&config).await;
    let results: Vec<_> = source.stream((0..13).collect()).collect().await;
    let error = results.last().expect("results").as_ref().expect_err("the last fails");
    assert!(matches!(error, IngestError::TooManySkips { skipped: 3, planned: 13, .. }));
    assert!(error.to_string().ends_with("the last: n02/half.png: truncated PNG"), "{error}");
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
}

#[tokio::test]
async fn limits_are_checked_before_reading_and_decoding() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("large.png"), png(300, 200, 0)).expect("a file");
    let one_reason = async |config: IngestConfig| {
        let outcomes = outcomes(&open(&config).await, vec![0]).await;
        skips(&outcomes)[0].reason.clone()
    };
    let reason = one_reason(IngestConfig { pixels_max: 59_999, ..config(folder.path()) }).await;
    let expected = SkipReason::TooManyPixels { width: 300, height: 200, pixels_max: 59_999 };
    assert_eq!(reason, expected);
    let reason = one_reason(IngestConfig { bytes_max: 100, ..config(folder.path()) }).await;
    assert!(matches!(reason, SkipReason::TooManyBytes { bytes, bytes_max: 100 } if bytes > 100));
}

#[tokio::test]
async fn a_vanished_file_is_a_skip() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("here.png"), png(9, 9, 0)).expect("a file");
    let source = open(&config(folder.path())).await;
    fs::remove_file(folder.path().join("here.png")).expect("removed");
    let outcomes = outcomes(&source, vec![0]).await;
    assert_eq!(skips(&outcomes)[0].reason, SkipReason::Vanished);
}

#[tokio::test]
async fn lists_name_files_and_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    class_folders(folder.path());
    let list = folder.path().join("list.txt");
    fs::write(&list, "n02/3.JPEG\t7\n\nn01/6.JPEG\t2\nn01/gone.JPEG\n").expect("a list");
    let source = open(&config(&list)).await;
    let found: Vec<_> = source.entries().iter().map(|e| (e.key.as_str(), e.label)).collect();
    assert_eq!(found, [("n01/6.JPEG", Some(2)), ("n01/gone.JPEG", None), ("n02/3.JPEG", Some(7))]);
    assert_eq!(source.classes().len(), 8);
    let outcomes = outcomes(&source, vec![0, 1, 2]).await;
    assert_eq!((images(&outcomes).len(), skips(&outcomes).len()), (2, 1));

    fs::write(&list, "n02/3.JPEG\nn01/6.JPEG\n").expect("a list");
    assert_eq!(open(&config(&list)).await.classes(), ["n01", "n02"]);

    fs::write(&list, "n02/3.JPEG\tcat\nn01/6.JPEG ant\n# n01/5.JPEG\n").expect("a list");
    assert_eq!(open(&config(&list)).await.classes(), ["ant", "cat"]);
    fs::write(&list, "n02/3.JPEG\t0.5\n").expect("a list");
    let error = Source::open(&config(&list)).await.err().expect("refused").to_string();
    let reason = "member line 1: 0.5 is neither a class number nor a class name";
    assert_eq!(error, format!("{}: {reason}", list.display()));
}

/// Lists as `find` and others write them: classes are folders of images, never `.` or `..`.
#[tokio::test]
async fn lists_of_paths_from_anywhere_have_the_folders_as_classes() {
    let folder = tempfile::tempdir().expect("a folder");
    class_folders(&folder.path().join("set"));
    fs::create_dir(folder.path().join("lists")).expect("a folder");
    let absolute = folder.path().join("set").display().to_string();
    let lists = [
        ("set/find.txt", "./n02/3.JPEG\n./n01/6.JPEG\n".to_owned()),
        ("lists/up.txt", "../set/n02/3.JPEG\r\n../set/n01/6.JPEG\r\n".to_owned()),
        ("lists/bom.txt", "\u{feff}../set/n02/../n02/3.JPEG  \n../set/n01/6.JPEG".to_owned()),
        ("lists/absolute.txt", format!("{absolute}/n02/3.JPEG\n{absolute}/n01/6.JPEG\n")),
    ];
    for (name, text) in lists {
        let list = folder.path().join(name);
        fs::write(&list, text).expect("a list");
        let source = open(&config(&list)).await;
        let found: Vec<_> = source.entries().iter().map(|e| (e.key.as_str(), e.label)).collect();
        assert_eq!(found, [("n01/6.JPEG", Some(0)), ("n02/3.JPEG", Some(1))], "{name}");
        assert_eq!(source.classes(), ["n01", "n02"], "{name}");
        assert_eq!(images(&outcomes(&source, vec![0, 1]).await).len(), 2, "{name}");
    }
}

#[tokio::test]
async fn everything_that_is_found_and_not_taken_is_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, content).expect("a file");
    };
    for name in ["a.jfif", "b", "c.jpg_large", "d.heic", "e.png"] {
        write(name, &png(9, 9, 1));
    }
    write("f.heic", b"\0\0\0\x18ftypheic");
    write("notes.txt", b"words");
    write("more.txt", b"words");
    write("Makefile", b"all:");
    write("._e.png", b"resource fork");
    // What lapflow made below the source is not part of it.
    write("out/ingest.json", b"{}");
    write("out/e.png", &png(9, 9, 1));
    write("ds/_delta_log/0.json", b"{}");
    write("ds/part.parquet", b"PAR1");
    for source in
        [folder.path().display().to_string(), format!("file://{}", folder.path().display())]
    {
        let remote = source.starts_with("file:");
        let source = open(&IngestConfig { source, ..config(folder.path()) }).await;
        let keys: Vec<_> = source.entries().iter().map(|entry| entry.key.as_str()).collect();
        // Of an object store's files only the names are looked at.
        let left_out = match remote {
            false => {
                assert_eq!(keys, ["a.jfif", "b", "c.jpg_large", "d.heic", "e.png", "f.heic"]);
                "2 .txt, 2 folders made by lapflow, 1 without ending"
            }
            true => {
                assert_eq!(keys, ["a.jfif", "d.heic", "e.png", "f.heic"]);
                "2 .txt, 2 folders made by lapflow, 2 without ending, 1 .jpg_large"
            }
        };
        assert_eq!(source.left_out().to_string(), left_out);
        let outcomes = outcomes(&source, (0..keys.len()).collect()).await;
        let reasons: Vec<_> = skips(&outcomes).iter().map(|s| s.reason.to_string()).collect();
        let start = "000000186674797068656963"[..16].to_owned();
        assert_eq!(
            reasons,
            [format!("neither JPEG, PNG, WebP nor PPM: it starts with {start}, as HEIF does")]
        );
    }

    // A stranger's files that are called as lapflow's: only together do they tell a folder.
    write("other/job.json", b"{}");
    write("other/metrics.jsonl", b"{}");
    write("other/e.png", &png(9, 9, 1));
    write("run/metrics.jsonl", b"{}");
    write("run/config.toml", b"");
    write("run/samples/e.png", &png(9, 9, 1));
    write("set/job.json", b"{}");
    write("set/000012.png", &png(9, 9, 1));
    for source in
        [folder.path().display().to_string(), format!("file://{}", folder.path().display())]
    {
        let source = open(&IngestConfig { source, ..config(folder.path()) }).await;
        assert!(source.entries().iter().any(|entry| entry.key == "other/e.png"));
        assert!(!source.entries().iter().any(|entry| entry.key.starts_with("run")));
        assert_eq!(source.left_out().counts()["folders made by lapflow"], 4);
    }

    // Archives beside loose images: one of the two was not meant.
    write("shards/0.tar", b"");
    for source in
        [folder.path().display().to_string(), format!("file://{}", folder.path().display())]
    {
        let config = IngestConfig { source, ..config(folder.path()) };
        let error = Source::open(&config).await.err().expect("refused").to_string();
        assert!(
            error.contains("loose images (a.jfif, ..) and 1 archives (shards/0.tar, ..)"),
            "{error}"
        );
    }
}

#[cfg(unix)]
#[tokio::test]
async fn pipes_are_skips_and_the_blobs_of_a_cache_are_there_once() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["blobs", "snapshots"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
    }
    for (name, shade) in [("0a", 1), ("0b", 2)] {
        fs::write(folder.path().join("blobs").join(name), png(9, 9, shade)).expect("a file");
    }
    symlink("../blobs/0a", folder.path().join("snapshots/0.png")).expect("a link");
    let pipe = folder.path().join("snapshots/pipe.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let source = open(&config(folder.path())).await;
    let keys: Vec<_> = source.entries().iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["blobs/0b", "snapshots/0.png", "snapshots/pipe.png"]);
    assert_eq!(source.left_out().to_string(), "1 targets of links that are taken");
    let outcomes = outcomes(&source, vec![0, 1, 2]).await;
    let reasons: Vec<_> = skips(&outcomes).iter().map(|skip| skip.reason.to_string()).collect();
    assert_eq!(reasons, ["unreadable: it is no regular file"]);
}

#[cfg(unix)]
#[tokio::test]
async fn names_in_any_encoding_stay_distinct_and_are_found_again() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a folder");
    let names: [&[u8]; 4] = [b"caf\xe9", b"caf\xe8", b"100%20", b"back\\slash"];
    for name in names {
        let class = folder.path().join(OsStr::from_bytes(name));
        fs::create_dir(&class).expect("a folder");
        fs::write(class.join("0.png"), png(9, 9, 1)).expect("a file");
        fs::write(class.join(OsStr::from_bytes(b"\xff.png")), png(9, 9, 2)).expect("a file");
    }
    let source = open(&config(folder.path())).await;
    assert_eq!(source.classes(), ["100%20", "back\\slash", "caf\\xe8", "caf\\xe9"]);
    let all = outcomes(&source, (0..8).collect()).await;
    assert_eq!((images(&all).len(), skips(&all)), (8, vec![]));
    // The same by way of a survey, as a watcher reads.
    let survey = lapflow_ingest::Survey::take(&config(folder.path())).await.expect("a survey");
    let names = survey.pieces().map(|piece| piece.name.clone()).collect();
    let opened = Arc::new(survey.open(names).await.expect("opens").source);
    assert_eq!(images(&outcomes(&opened, (0..8).collect()).await).len(), 8);
    // And by a label file, which names them as the source does.
    let labels = folder.path().join("labels.csv");
    fs::write(&labels, "caf\\xe9/0.png,one\ncaf\\xe8/0.png,two\n").expect("a file");
    let labelled = open(&IngestConfig { labels: Some(labels), ..config(folder.path()) }).await;
    assert_eq!(labelled.entries().iter().filter(|entry| entry.label.is_some()).count(), 2);
}

#[tokio::test]
async fn sources_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = folder.path().display().to_string();
    let error = async |config: IngestConfig| {
        Source::open(&config).await.err().expect("refused").to_string()
    };
    let gone = folder.path().join("gone");
    assert_eq!(
        error(config(&gone)).await,
        format!("source {}: there is no such file or folder", gone.display())
    );
    assert_eq!(error(config(folder.path())).await, format!("source {name}: it holds no images"));
    fs::write(folder.path().join("shard.tar.gz"), b"\x1f\x8b").expect("a file");
    let nothing = format!("source {name}: it holds no images, only 1 .gz");
    assert_eq!(error(config(folder.path())).await, nothing);
    assert_eq!(
        error(IngestConfig { size: 0, ..config(folder.path()) }).await,
        "data.size: 0 is outside 1..=8192"
    );
    class_folders(folder.path());
    assert_eq!(
        error(IngestConfig { entries_max: 4, ..config(folder.path()) }).await,
        format!("source {name}: more than entries_max = 4 entries")
    );
    let source = open(&config(folder.path())).await;
    let results: Vec<_> = source.stream(vec![0, 13]).collect().await;
    assert!(matches!(results[..], [Err(IngestError::Index { index: 13, count: 13 })]));
}

#[tokio::test]
async fn every_image_of_a_real_dataset_is_accounted_for() {
    let Some(data) = std::env::var_os("LAPFLOW_TEST_DATA") else {
        eprintln!("skipped: LAPFLOW_TEST_DATA is not set");
        return;
    };
    let folder = Path::new(&data).join("imagenet-sample");
    let source = open(&IngestConfig { size: 256, ..config(&folder) }).await;
    assert_eq!((source.entries().len(), source.classes().len()), (200, 200));
    let outcomes = outcomes(&source, (0..200).collect()).await;
    assert_eq!((images(&outcomes).len(), skips(&outcomes)), (200, vec![]));
}

#[tokio::test]
async fn fast_decoding_gives_nearly_the_exact_crop_and_the_size_in_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode/gray.jpg");
    fs::copy(golden, folder.path().join("one.jpg")).expect("a copy");
    let read = async |size: u32, decode: Decode| {
        let config = IngestConfig { size, decode, ..config(folder.path()) };
        let outcomes = outcomes(&open(&config).await, vec![0]).await;
        let item = images(&outcomes)[0].clone();
        assert_eq!((item.width, item.height, item.image.width), (45, 37, size));
        item.image
    };
    // 45x37 is halved once for 16: to 23x19 by the decoder, to 22x18 by ADM.
    let (exact, fast) = (read(16, Decode::Exact).await, read(16, Decode::Fast).await);
    let difference: u32 =
        exact.pixels.iter().zip(&fast.pixels).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    let mean = f64::from(difference) / exact.pixels.len() as f64;
    assert!(exact != fast && mean < 12.0, "{mean}");
    assert!(read(20, Decode::Exact).await == read(20, Decode::Fast).await);
}
