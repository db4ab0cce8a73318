//! Archives, local and through an object store, against the same images as plain files.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use futures::StreamExt;
use lapflow_ingest::{IngestConfig, Item, Outcome, Source};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use zip::write::SimpleFileOptions;

/// Eight PNGs of different sizes, of classes `bird` and `cat` in turn.
fn images() -> Vec<(String, Vec<u8>)> {
    (0..8_u32)
        .map(|index| {
            let mut png = std::io::Cursor::new(Vec::new());
            image::RgbImage::from_fn(40 + 9 * index, 50, |x, y| {
                image::Rgb([(x * y) as u8, (x + index) as u8, y as u8])
            })
            .write_to(&mut png, image::ImageFormat::Png)
            .expect("PNG into memory");
            let class = if index % 2 == 0 { "bird" } else { "cat" };
            (format!("{class}/{index}.png"), png.into_inner())
        })
        .collect()
}

fn tar_bytes(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Written by hand, since the builder itself refuses names that lead out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_slice()).expect("into memory");
    }
    tar.into_inner().expect("into memory")
}

fn zip_bytes(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let methods = [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated];
    for ((name, content), method) in members.iter().zip(methods.iter().cycle()) {
        let options = SimpleFileOptions::default().compression_method(*method);
        zip.start_file(name, options).expect("into memory");
        zip.write_all(content).expect("into memory");
    }
    zip.finish().expect("into memory").into_inner()
}

/// Hugging Face's layout, three rows a row group, snappy.
fn parquet_bytes(images: &[(String, Vec<u8>)]) -> Vec<u8> {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(images.iter().map(|(_, b)| b)));
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|(k, _)| k)));
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let column: ArrayRef = Arc::new(StructArray::new(fields.clone(), vec![bytes, paths], None));
    let labels: ArrayRef =
        Arc::new(Int64Array::from_iter_values((0..images.len() as i64).map(|i| i % 2)));
    let info =
        r#"{"info": {"features": {"label": {"names": ["bird", "cat"], "_type": "ClassLabel"}}}}"#;
    let schema = Arc::new(Schema::new_with_metadata(
        vec![
            Field::new("image", DataType::Struct(fields), true),
            Field::new("label", DataType::Int64, true),
        ],
        std::collections::HashMap::from([("huggingface".to_owned(), info.to_owned())]),
    ));
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(3))
        .set_compression(Compression::SNAPPY)
        .build();
    let mut writer =
        ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties)).expect("a writer");
    writer
        .write(&RecordBatch::try_new(schema, vec![column, labels]).expect("a batch"))
        .expect("written");
    writer.into_inner().expect("into memory")
}

fn write(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(&path, content).expect("a file");
    path.display().to_string()
}

async fn open(source: &str) -> Result<Arc<Source>, String> {
    let config = IngestConfig {
        source: source.to_owned(),
        size: 32,
        skip_fraction_max: 1.0,
        ..IngestConfig::default()
    };
    Source::open(&config).await.map(Arc::new).map_err(|error| error.to_string())
}

/// The images of a source in a shuffled order, and what was skipped.
async fn read(source: &Arc<Source>) -> (Vec<Item>, Vec<String>) {
    let count = source.entries().len();
    let order = (0..count).map(|step| (step * 5 + 3) % count).collect();
    let outcomes: Vec<_> = source.stream(order).collect().await;
    let (mut items, mut skips) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome.expect("the job goes on") {
            Outcome::Image(item) => items.push(item),
            Outcome::Skip(skip) => skips.push(format!("{}: {}", skip.key, skip.reason)),
        }
    }
    items.sort_by_key(|item| item.id);
    (items, skips)
}

#[tokio::test]
async fn every_container_yields_the_same_images_and_classes() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = images();
    let plain = folder.path().join("plain");
    for (key, content) in &images {
        write(&plain, key, content);
    }
    let (expected, _) = read(&open(&plain.display().to_string()).await.expect("opens")).await;
    assert_eq!(expected.len(), 8);

    let tar = write(folder.path(), "a.tar", &tar_bytes(&images));
    let zip = write(folder.path(), "a.zip", &zip_bytes(&images));
    let parquet = write(folder.path(), "a.parquet", &parquet_bytes(&images));
    for path in [plain.display().to_string(), tar, zip, parquet] {
        for source in [path.clone(), format!("file://{path}")] {
            let source = open(&source).await.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(source.classes(), ["bird", "cat"], "{path}");
            let (items, skips) = read(&source).await;
            assert_eq!(skips, [""; 0], "{path}");
            let by_digest = |item: &Item| (item.sha256, item.label, item.width, item.image.clone());
            let mut found: Vec<_> = items.iter().map(by_digest).collect();
            let mut wanted: Vec<_> = expected.iter().map(by_digest).collect();
            found.sort_by_key(|item| item.0);
            wanted.sort_by_key(|item| item.0);
            assert!(found == wanted, "{path}");
        }
    }
}

#[tokio::test]
async fn webdataset_shards_carry_their_labels_and_prefix_their_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = images();
    for (shard, images) in images.chunks(4).enumerate() {
        let mut members = Vec::new();
        for (index, (_, content)) in images.iter().enumerate() {
            members.push((
                format!("{index:04}.cls"),
                format!("{}\n", 10 * shard + index).into_bytes(),
            ));
            members.push((format!("{index:04}.jpg"), content.clone()));
        }
        write(folder.path(), &format!("train-{shard}.tar"), &tar_bytes(&members));
    }
    let source = open(&folder.path().display().to_string()).await.expect("opens");
    let found: Vec<_> = source.entries().iter().map(|e| (e.key.as_str(), e.label)).collect();
    assert_eq!(found[0], ("train-0.tar/0000.jpg", Some(0)));
    assert_eq!(found[7], ("train-1.tar/0003.jpg", Some(13)));
    assert_eq!(source.classes().len(), 14);
    assert_eq!(read(&source).await.0.len(), 8);
}

#[tokio::test]
async fn dataset_json_labels_a_zip() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut members = images();
    let labels: Vec<_> = members.iter().skip(1).map(|(key, _)| (key.clone(), key.len())).collect();
    let json = serde_json::json!({ "labels": labels });
    members.push(("dataset.json".into(), json.to_string().into_bytes()));
    let source = open(&write(folder.path(), "edm.zip", &zip_bytes(&members))).await.expect("opens");
    let labels: Vec<_> = source.entries().iter().map(|entry| entry.label).collect();
    assert_eq!(labels[..2], [None, Some(10)]);
    let (items, skips) = read(&source).await;
    assert_eq!(items.len(), 7);
    assert_eq!(skips, ["bird/0.png: the label file does not name it"]);
}

#[tokio::test]
async fn names_that_lead_out_of_an_archive_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, shown) in [
        ("../evil.png", "../evil.png"),
        ("/etc/evil.png", "/etc/evil.png"),
        ("a/../../evil.png", "a/../../evil.png"),
        ("a\\..\\evil.png", "a/../evil.png"),
    ] {
        let members = [(name.to_owned(), vec![1, 2, 3])];
        for (file, bytes) in [("e.tar", tar_bytes(&members)), ("e.zip", zip_bytes(&members))] {
            let path = write(folder.path(), file, &bytes);
            let error = open(&path).await.err().unwrap_or_else(|| panic!("{file} {name} opened"));
            assert_eq!(error, format!("{path}: member {shown}: its name leads out of the archive"));
        }
    }
}

#[tokio::test]
async fn broken_archives_are_named_and_cut_members_are_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = images();
    let whole = tar_bytes(&images);
    // Inside the last image: the archive opens, that image is skipped.
    let cut = whole.len() - 1024 - images[7].1.len().next_multiple_of(512) + 40;
    let path = write(folder.path(), "cut.tar", &whole[..cut]);
    let (items, skips) = read(&open(&path).await.expect("opens")).await;
    assert_eq!(items.len(), 7);
    assert_eq!(skips, ["cat/7.png: unreadable: the archive ends before its member does"]);

    let mut garbled = whole.clone();
    let second_header = 512 + images[0].1.len().next_multiple_of(512);
    garbled[second_header..second_header + 100].fill(b'x');
    let path = write(folder.path(), "garbled.tar", &garbled);
    let error = open(&path).await.err().expect("refused");
    assert!(error.starts_with(&format!("{path}: member after bird/0.png: ")), "{error}");

    let zip = zip_bytes(&images);
    let path = write(folder.path(), "cut.zip", &zip[..zip.len() / 2]);
    let error = open(&path).await.err().expect("refused");
    assert!(error.starts_with(&format!("source {path}: ")), "{error}");

    let parquet = parquet_bytes(&images);
    let path = write(folder.path(), "cut.parquet", &parquet[..parquet.len() - 3]);
    let error = open(&path).await.err().expect("refused");
    assert!(error.starts_with(&format!("source {path}: ")), "{error}");

    let path = write(folder.path(), "empty.tar", &[]);
    assert_eq!(open(&path).await.err(), Some(format!("source {path}: it is empty, 0 bytes")));
}

#[tokio::test]
async fn archives_with_endless_members_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let members: Vec<_> = (0..50).map(|index| (format!("{index}.txt"), Vec::new())).collect();
    for (file, bytes) in [("m.tar", tar_bytes(&members)), ("m.zip", zip_bytes(&members))] {
        let source = write(folder.path(), file, &bytes);
        let config = IngestConfig { source, entries_max: 20, ..IngestConfig::default() };
        let error = Source::open(&config).await.err().expect("refused").to_string();
        assert!(error.ends_with("more than entries_max = 20 entries"), "{error}");
    }
}

/// Found by fuzzing: lists of lists that a page's header says are there, behind the file's end.
#[tokio::test]
async fn a_parquet_header_that_never_ends_is_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/endless-header.parquet");
    let path = path.display().to_string();
    let error = open(&path).await.err().expect("refused");
    assert!(error.ends_with("unexpected end of file"), "{error}");
}

#[tokio::test]
async fn a_deflated_bomb_is_a_skip() {
    let folder = tempfile::tempdir().expect("a folder");
    let members =
        [("a.png".to_owned(), images()[0].1.clone()), ("bomb.png".to_owned(), vec![0; 3 << 20])];
    let path = write(folder.path(), "bomb.zip", &zip_bytes(&members));
    let config = IngestConfig {
        source: path,
        size: 32,
        bytes_max: 1 << 20,
        skip_fraction_max: 1.0,
        ..IngestConfig::default()
    };
    let (items, skips) = read(&Arc::new(Source::open(&config).await.expect("opens"))).await;
    assert_eq!(items.len(), 1);
    assert_eq!(skips, ["bomb.png: 1048577 bytes, more than bytes_max = 1048576"]);
}

#[tokio::test]
async fn label_files_replace_the_sources_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    for (key, content) in images().iter().take(3) {
        write(&folder.path().join("set"), key, content);
    }
    let labelled = async |name: &str, text: &str| {
        let labels = Some(write(folder.path(), name, text.as_bytes()).into());
        let source = folder.path().join("set").display().to_string();
        let config = IngestConfig { source, labels, ..IngestConfig::default() };
        Source::open(&config).await.map_err(|error| error.to_string()).map(|source| {
            let labels = source.entries().iter().map(|entry| entry.label).collect::<Vec<_>>();
            (labels, source.classes().to_vec())
        })
    };
    // Sorted keys: bird/0.png, bird/2.png, cat/1.png.
    let csv = "path,label\nbird/0.png,owl\ncat/1.png,tabby\nbird/2.png,owl\n";
    let (labels, classes) = labelled("a.csv", csv).await.expect("opens");
    assert_eq!(
        (labels, classes),
        (vec![Some(0), Some(0), Some(1)], vec!["owl".into(), "tabby".into()])
    );
    let json = r#"{"cat/1.png": 2, "bird/0.png": 0}"#;
    let (labels, classes) = labelled("a.json", json).await.expect("opens");
    assert_eq!((labels, classes.len()), (vec![Some(0), None, Some(2)], 3));

    for (name, text, reason) in [
        ("mixed.csv", "bird/0.png,1\ncat/1.png,cat", "it mixes class numbers and class names"),
        ("twice.csv", "0.png,1\nbird/0.png,2", "`bird/0.png` has two labels, line 1 and line 2"),
        ("comma.csv", "0.png 1", "line 1 has no comma, semicolon or tab"),
        ("ragged.csv", "0.png,1\n2.png,1,2", "line 2 has 3 fields, the first 2"),
        ("half.csv", "0.png,0.5", "line 1: 0.5 is neither a class number nor a class name"),
        ("large.csv", "0.png,5000000000", "line 1: 5000000000 is too large for a class number"),
        (
            "three.csv",
            "0.png,x,y",
            "it has no header, and in its first line 0.png, x, y: call one of them label",
        ),
        (
            "strange.csv",
            "file,label\nx.png,1",
            "it names no image of the source: `x.png`, not `bird/0.png`",
        ),
        ("a.yaml", "a: 1", "it is neither .json, .csv nor .tsv"),
        ("broken.json", "{\"a\": ", "EOF while parsing a value at line 1 column 6"),
        ("pair.json", "{\"labels\": [[\"0.png\"]]}", "[\"0.png\"] is no [key, label]"),
        (
            "list.json",
            "[1]",
            "it is neither EDM's {\"labels\": [[key, label], ..]} nor {key: label, ..}",
        ),
    ] {
        let path = folder.path().join(name);
        let error = labelled(name, text).await.expect_err("refused");
        assert_eq!(error, format!("labels {}: {reason}", path.display()));
    }
    let error = labelled("many.csv", "0.png,4000000000").await.expect_err("refused");
    assert!(error.ends_with("class 4000000000 is beyond the 1048576 classes allowed"), "{error}");
}

/// Tables as people write them, each of the same labels.
#[tokio::test]
async fn tables_of_labels_are_read_as_they_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    for (key, content) in images().iter().take(3) {
        write(&folder.path().join("set"), key, content);
    }
    let fishes = ["goldfish, Carassius auratus", "tench"];
    for (name, text) in [
        (
            "a.csv",
            "id,breed\n0,\"goldfish, Carassius auratus\"\n1,tench\n2,\"goldfish, Carassius auratus\"\n",
        ),
        (
            "b.csv",
            "\u{feff}set/bird/0.png,\"goldfish, Carassius auratus\"\r\n./cat/1.png,tench\r\n2.png,\"goldfish, Carassius auratus\"\r\n",
        ),
        (
            "c.csv",
            ",file,label,split\n7,0.png,\"goldfish, Carassius auratus\",a\n8,1.png,tench,b\n9,2.png,\"goldfish, Carassius auratus\",b\n",
        ),
        (
            "d.tsv",
            "file\tlabel\n0.png\tgoldfish, Carassius auratus\n1.png\ttench\n2.png\tgoldfish, Carassius auratus\n",
        ),
        (
            "e.csv",
            "class;name\ngoldfish, Carassius auratus;0.png\ntench;1.png\ngoldfish, Carassius auratus;2.png\n",
        ),
        (
            "f.json",
            "\u{feff}{\"bird/0.png\": \"goldfish, Carassius auratus\", \"1\": \"tench\", \"2\": \"goldfish, Carassius auratus\"}",
        ),
    ] {
        let labels = Some(write(folder.path(), name, text.as_bytes()).into());
        let source = folder.path().join("set").display().to_string();
        let config = IngestConfig { source, labels, ..IngestConfig::default() };
        let source = Source::open(&config).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let labels: Vec<_> = source.entries().iter().map(|entry| entry.label).collect();
        assert_eq!(source.classes(), fishes, "{name}");
        assert_eq!(labels, [Some(0), Some(0), Some(1)], "{name}");
        let guessed = ["a.csv", "c.csv", "e.csv"].contains(&name);
        assert_eq!(!source.notes().is_empty(), guessed, "{name}: {:?}", source.notes());
    }
    // Withheld labels, and a line that names nothing.
    let text = "file,label\n0.png,-1\n1.png,1.0\n2.png,\nother.png,3\n";
    let labels = Some(write(folder.path(), "g.csv", text.as_bytes()).into());
    let source = folder.path().join("set").display().to_string();
    let source = Source::open(&IngestConfig { source, labels, ..IngestConfig::default() }).await;
    let source = source.expect("opens");
    let labels: Vec<_> = source.entries().iter().map(|entry| entry.label).collect();
    assert_eq!(labels, [None, None, Some(1)]);
    assert!(source.notes()[0].ends_with("1 of 4 names are of no image: `other.png`, .."));
    let utf16: Vec<u8> = "a,1".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16 = [&[0xff, 0xfe][..], &utf16].concat();
    let labels = Some(write(folder.path(), "h.csv", &utf16).into());
    let source = folder.path().join("set").display().to_string();
    let config = IngestConfig { source, labels, ..IngestConfig::default() };
    let error = Source::open(&config).await.err().expect("refused").to_string();
    assert!(error.ends_with("it is UTF-16: save it as UTF-8"), "{error}");
}

/// A Parquet file of the images with a column of labels of any kind.
fn parquet_labelled(name: &str, labels: ArrayRef, features: &str) -> Vec<u8> {
    let images = images();
    let bytes: ArrayRef =
        Arc::new(BinaryArray::from_iter_values(images.iter().take(labels.len()).map(|(_, b)| b)));
    let fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true)]);
    let column: ArrayRef = Arc::new(StructArray::new(fields.clone(), vec![bytes], None));
    let info = format!(r#"{{"info": {{"features": {{{features}}}}}}}"#);
    let schema = Arc::new(Schema::new_with_metadata(
        vec![
            Field::new("image", DataType::Struct(fields), true),
            Field::new(name, labels.data_type().clone(), true),
        ],
        std::collections::HashMap::from([("huggingface".to_owned(), info)]),
    ));
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), None).expect("a writer");
    writer
        .write(&RecordBatch::try_new(schema, vec![column, labels]).expect("a batch"))
        .expect("written");
    writer.into_inner().expect("into memory")
}

#[tokio::test]
async fn columns_of_labels_become_classes_or_are_refused() {
    use arrow::array::{BooleanArray, DictionaryArray, Float64Array, UInt8Array};
    use arrow::datatypes::Int32Type;
    let folder = tempfile::tempdir().expect("a folder");
    let file = |labels: ArrayRef| {
        write(folder.path(), "a.parquet", &parquet_labelled("label", labels, ""))
    };
    let names = StringArray::from(vec![Some("owl"), Some("cat"), None]);
    let named: DictionaryArray<Int32Type> =
        vec![Some("owl"), Some("cat"), None].into_iter().collect();
    for labels in [Arc::new(names) as ArrayRef, Arc::new(named)] {
        let source = open(&file(labels)).await.expect("opens");
        assert_eq!(source.classes(), ["cat", "owl"]);
        let labels: Vec<_> = source.entries().iter().map(|entry| entry.label).collect();
        assert_eq!(labels, [Some(1), Some(0), None]);
    }
    for labels in [
        Arc::new(UInt8Array::from(vec![1, 0, 1])) as ArrayRef,
        Arc::new(BooleanArray::from(vec![true, false, true])),
        Arc::new(Float64Array::from(vec![1.0, 0.0, 1.0])),
        Arc::new(StringArray::from(vec!["1", "0", "1"])),
    ] {
        let source = open(&file(labels)).await.expect("opens");
        let labels: Vec<_> = source.entries().iter().map(|entry| entry.label).collect();
        assert_eq!(labels, [Some(1), Some(0), Some(1)]);
    }
    let path = file(Arc::new(Float64Array::from(vec![1.0, 0.7])));
    let error = open(&path).await.err().expect("refused");
    let reason = "row 1: 0.7 is neither a class number nor a class name";
    assert_eq!(error, format!("source {path}: its column `label`, {reason}"));

    let class = |name: &str| {
        let feature = r#"{"names": ["x", "y"], "_type": "ClassLabel"}"#;
        parquet_labelled(
            name,
            Arc::new(Int64Array::from(vec![0, 1])),
            &format!("\"{name}\": {feature}"),
        )
    };
    let source =
        open(&write(folder.path(), "b.parquet", &class("fine_label"))).await.expect("opens");
    assert_eq!(source.classes(), ["x", "y"]);
    assert!(source.notes()[0].ends_with("labels are those of column `fine_label`"));

    // Several files: the classes are those of all.
    let several = tempfile::tempdir().expect("a folder");
    for (name, label) in [("1.parquet", "owl"), ("2.parquet", "cat")] {
        let labels = Arc::new(StringArray::from(vec![label, "ant"]));
        write(several.path(), name, &parquet_labelled("label", labels, ""));
    }
    let source = open(&several.path().display().to_string()).await.expect("opens");
    let labels: Vec<_> = source.entries().iter().map(|entry| entry.label).collect();
    assert_eq!(
        (source.classes(), labels.as_slice()),
        (
            ["ant", "cat", "owl"].map(String::from).as_slice(),
            [Some(2), Some(0), Some(1), Some(0)].as_slice()
        )
    );
    // Another order of names under the same numbers is another meaning.
    write(several.path(), "3.parquet", &class("label"));
    let other = r#""label": {"names": ["y", "x"], "_type": "ClassLabel"}"#;
    let labels = Arc::new(Int64Array::from(vec![0, 1]));
    write(several.path(), "4.parquet", &parquet_labelled("label", labels, other));
    let error = open(&several.path().display().to_string()).await.err().expect("refused");
    assert!(error.ends_with("a class is called `y` in it, `x` in those before"), "{error}");
}

/// Kind, name, target of a link, content.
type Member<'a> = (tar::EntryType, &'a [u8], &'a [u8], &'a [u8]);

/// A tar whose members are written by hand.
fn tar_of(members: &[Member]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, target, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        tar.append(&header, *content).expect("into memory");
    }
    tar.into_inner().expect("into memory")
}

#[tokio::test]
async fn links_in_a_tar_are_what_they_lead_to() {
    use tar::EntryType::{Link, Regular, Symlink};
    let folder = tempfile::tempdir().expect("a folder");
    let png = &images()[0].1;
    let path = write(
        folder.path(),
        "links.tar",
        &tar_of(&[
            (Symlink, b"snap/early.png", b"../blobs/1234", b""),
            (Regular, b"blobs/1234", b"", png),
            (Link, b"cat/hard.png", b"blobs/1234", b""),
            (Symlink, b"cat/twice.png", b"hard.png", b""),
            (Symlink, b"cat/dead.png", b"../gone.png", b""),
            (Symlink, b"cat/out.png", b"../../gone.png", b""),
            (Symlink, b"cat/loop.png", b"loop.png", b""),
            (Link, b"notes.txt", b"blobs/1234", b""),
            (tar::EntryType::Fifo, b"pipe.png", b"", b""),
        ]),
    );
    let source = open(&path).await.expect("opens");
    let keys: Vec<_> = source.entries().iter().map(|entry| entry.key.as_str()).collect();
    // The blob itself, which only its bytes tell, is not there a second time.
    assert_eq!(keys, ["cat/hard.png", "cat/twice.png", "snap/early.png"]);
    let left_out = "3 links to what the archive does not hold, 1 .txt, \
                    1 pipes and devices, 1 targets of links that are taken";
    assert_eq!(source.left_out().to_string(), left_out);
    let (items, skips) = read(&source).await;
    assert_eq!((items.len(), skips.len()), (3, 0));
    assert!(items.iter().all(|item| item.sha256 == items[0].sha256));
}

#[tokio::test]
async fn what_is_only_called_a_tar_is_named_and_a_cut_one_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    for (head, is) in [
        (&[0x1f, 0x8b, 8, 0][..], "compressed by gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "compressed by zstd"),
        (b"<!DOCTYPE html>", "a page of HTML or XML, perhaps of a download that failed"),
    ] {
        for (name, called) in
            [("a.tar", "plain tar"), ("a.zip", "zip archive"), ("a.parquet", "Parquet file")]
        {
            let path = write(folder.path(), name, head);
            let error = open(&path).await.err().expect("refused");
            assert_eq!(error, format!("source {path}: it is no {called}, but {is}"));
        }
    }
    let path = write(folder.path(), "b.tar", &zip_bytes(&images()));
    let error = open(&path).await.err().expect("refused");
    assert_eq!(error, format!("source {path}: it is no plain tar, but a zip archive"));
    // An empty shard among good ones.
    let shards = tempfile::tempdir().expect("a folder");
    write(shards.path(), "0.tar", &tar_bytes(&images()));
    write(shards.path(), "1.tar", &[]);
    let error = open(&shards.path().display().to_string()).await.err().expect("refused");
    assert!(error.ends_with("1.tar: it is empty, 0 bytes"), "{error}");

    // One that holds nothing, though it is whole.
    let nothing = write(shards.path(), "1.tar", &[0; 10240]);
    let source = open(&shards.path().display().to_string()).await.expect("opens");
    assert_eq!(source.entries().len(), 8);
    assert_eq!(source.notes(), [format!("{nothing} holds no images")]);

    // Two tars put one behind another with `cat`.
    let (first, second) = (tar_bytes(&images()[..3]), tar_bytes(&images()[3..]));
    let path = write(folder.path(), "two.tar", &[first, second].concat());
    let source = open(&path).await.expect("opens");
    assert_eq!((source.entries().len(), read(&source).await.0.len()), (8, 8));

    // What is left over behind the end mark, or lacks of it, costs no image and is told.
    let whole = tar_bytes(&images());
    for tar in [[&whole[..], b"\n"].concat(), whole[..whole.len() - 100].to_vec()] {
        let path = write(folder.path(), "uneven.tar", &tar);
        let source = open(&path).await.expect("opens");
        assert_eq!(source.entries().len(), 8);
        let told = format!("{path} ends within a block: it may have been cut off");
        assert_eq!(source.notes(), [told]);
    }
    let path = write(folder.path(), "cut.tar", &whole[..whole.len() - 1024]);
    let source = open(&path).await.expect("opens");
    assert_eq!(source.notes(), [format!("{path} has no end mark: it may have been cut off")]);
}

#[tokio::test]
async fn sidecars_backslashes_and_foreign_names_in_archives() {
    let folder = tempfile::tempdir().expect("a folder");
    let png = images()[0].1.clone();
    let named = |names: &[&str]| -> Vec<(String, Vec<u8>)> {
        names.iter().map(|name| ((*name).to_owned(), png.clone())).collect()
    };
    let mac = named(&["cat/0.png", "__MACOSX/cat/._0.png", "cat/._1.png", ".hidden/2.png"]);
    let windows = named(&["cat\\0.png", "dog\\1.png"]);
    for (mac, windows) in [
        (("m.tar", tar_bytes(&mac)), ("w.tar", tar_bytes(&windows))),
        (("m.zip", zip_bytes(&mac)), ("w.zip", zip_bytes(&windows))),
    ] {
        let keys = async |(name, content): (&str, Vec<u8>)| {
            let source = open(&write(folder.path(), name, &content)).await.expect("opens");
            let keys = source.entries().iter().map(|entry| entry.key.clone());
            (keys.collect::<Vec<_>>(), source.classes().to_vec(), source.left_out().is_empty())
        };
        assert_eq!(keys(mac).await, (vec!["cat/0.png".into()], vec!["cat".into()], true));
        let (two, classes) = (["cat/0.png", "dog/1.png"], ["cat", "dog"]);
        assert_eq!(
            keys(windows).await,
            (two.map(String::from).into(), classes.map(String::from).into(), true)
        );
    }
    use tar::EntryType::Regular;
    let latin =
        tar_of(&[(Regular, b"caf\xe9/0.png", b"", &png), (Regular, b"caf\xe8/0.png", b"", &png)]);
    let source = open(&write(folder.path(), "latin.tar", &latin)).await.expect("opens");
    assert_eq!(source.classes(), ["caf\\xe8", "caf\\xe9"]);
    assert_eq!(read(&source).await.0.len(), 2);

    // A zip that says UTF-8 in its Unicode field alone, behind a name in Shift-JIS of equal length.
    let utf8 = "猫/0.png";
    let mut zip = zip_bytes(&named(&[utf8]));
    assert!(zip.windows(utf8.len()).any(|window| window == utf8.as_bytes()));
    for at in 0..zip.len() - 3 {
        if zip[at..at + 3] == *"猫".as_bytes() {
            zip[at..at + 3].copy_from_slice(b"\x94Lx");
        }
    }
    let source = open(&write(folder.path(), "sjis.zip", &zip)).await.expect("opens");
    assert_eq!(source.classes(), ["\\x94Lx"]);

    // Letters of Shift-JIS whose second byte is a backslash: neither a hidden file behind a slash,
    // nor one class of two.
    let mut zip = zip_bytes(&named(&["@@.png", "@@A/0.png", "@@B/0.png"]));
    for at in 0..zip.len() - 1 {
        if zip[at..at + 2] == *b"@@" {
            zip[at..at + 2].copy_from_slice(b"\x95\\");
        }
    }
    let source = open(&write(folder.path(), "letters.zip", &zip)).await.expect("opens");
    assert_eq!(source.classes(), ["\\x95\\x5cA", "\\x95\\x5cB"]);
    assert_eq!(read(&source).await.0.len(), 3);
    // A name with a slash is not of Windows.
    let unix = tar_of(&[(Regular, b"a\\b/0.png", b"", &png), (Regular, b"a\\c/0.png", b"", &png)]);
    let source = open(&write(folder.path(), "unix.tar", &unix)).await.expect("opens");
    assert_eq!(source.classes(), ["a\\b", "a\\c"]);
}

#[tokio::test]
async fn links_in_a_zip_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    zip.start_file("a/1.png", options).expect("into memory");
    zip.write_all(&images()[0].1).expect("into memory");
    zip.add_symlink("b/1.png", "../a/1.png", options).expect("into memory");
    let zip = zip.finish().expect("into memory").into_inner();
    let source = open(&write(folder.path(), "links.zip", &zip)).await.expect("opens");
    assert_eq!(source.classes(), ["a"]);
    assert_eq!(source.left_out().to_string(), "1 symbolic links");
}

#[tokio::test]
async fn dataset_json_labels_a_folder_wherever_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let named = (0..4).map(|index| format!("00000/{index}.png"));
    for (name, (_, content)) in named.zip(images()) {
        write(folder.path(), &name, &content);
    }
    let labels = r#"{"labels": [["00000/0.png", 1], ["00000/1.png", 0], ["00000/2.png", 1]]}"#;
    write(folder.path(), "dataset.json", labels.as_bytes());
    let path = folder.path().display().to_string();
    for source in [path.clone(), format!("file://{path}")] {
        let opened = open(&source).await.expect("opens");
        let labels: Vec<_> = opened.entries().iter().map(|entry| entry.label).collect();
        assert_eq!(labels, [Some(1), Some(0), Some(1), None], "{source}");
        assert!(opened.left_out().is_empty(), "{source}: {}", opened.left_out());
        let config = IngestConfig { source, size: 32, ..IngestConfig::default() };
        let survey = lapflow_ingest::Survey::take(&config).await.expect("a survey");
        let names = survey.pieces().map(|piece| piece.name.clone()).collect();
        let found = survey.open(names).await.expect("opens").source;
        let followed: Vec<_> = found.entries().iter().map(|entry| entry.label).collect();
        assert_eq!(followed, labels);
    }
}
