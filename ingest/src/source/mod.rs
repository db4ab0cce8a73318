//! What images a source holds, under which names and labels.

mod archive;
mod blob;
mod folder;
mod labels;
mod list;
mod lmdb;
mod parquet;
mod read;
mod store;
mod survey;
mod tar;
mod zip;

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::archive::ArchiveFormat;
use self::blob::{Blob, Object};
use self::labels::Labels;
use self::parquet::{RowAt, RowGroups};
use self::store::Remote;
use self::zip::{DATASET_JSON, Zipped};
use crate::budget::Budget;
use crate::config::IngestConfig;
use crate::decode::Limits;
use crate::error::{IngestError, Result};

pub use self::survey::{Opened, Pick, Piece, Survey};

/// An opened source: its sorted listing, and the threads that decode its images.
///
/// What `data.source` names decides how it is read:
///
/// | source | entries | label |
/// |---|---|---|
/// | a folder | every image file beneath it | its top-level folder, numbered in sorted order |
/// | a `.txt` file | one path a line, relative to the list | after a tab, else as in a folder |
/// | a `.tar` | its image members | WebDataset's `.cls` members, else as in a folder |
/// | a `.zip` | its image members | EDM's `dataset.json`, else as in a folder |
/// | a `.parquet` | its rows, images in a struct with a field `bytes` | the column `label` |
/// | a `.mdb` or `.lmdb` | the values of an LMDB database: image files, or squares of RGB pixels | none |
/// | a folder of archives | theirs, keys prefixed with the archive's | theirs |
///
/// All but lists may be `s3://`, `gs://` and `az://` URIs. A `dataset.json` at the top of a
/// folder labels it as one in a zip does. A label file in the configuration replaces all this,
/// and then an image that it does not name is a skip.
///
/// Archives are never unpacked: one pass over their directories at opening, then reads of the
/// members asked for. A Parquet row costs its whole row group unless that is one of the last
/// few read, so such sources want to be read nearly in order.
///
/// Memory while streaming stays below the sum of `decode_bytes_max` (or the needs of a single
/// image, if they are greater), `threads * bytes_max` for files being read, `fetch_bytes_max`
/// for objects fetched ahead, four row groups of Parquet sources, and
/// `queue_images_max * 3 * size^2` for finished images (twice that with `flip`).
pub struct Source {
    pub(crate) config: IngestConfig,
    pub(crate) pool: ThreadPool,
    pub(crate) decode_budget: Budget,
    /// Permits of [`FETCH_PERMIT_BYTES`] each.
    pub(crate) fetch_budget: Semaphore,
    /// Whether an image without a label is a skip.
    pub(crate) labels_required: bool,
    /// What keys are relative to.
    root: PathBuf,
    archives: Vec<Blob>,
    row_groups: RowGroups,
    entries: Vec<Entry>,
    classes: Vec<String>,
}

/// Granularity at which fetched bytes are accounted for.
pub(crate) const FETCH_PERMIT_BYTES: u64 = 4096;

/// One image of a source.
#[derive(Clone)]
pub struct Entry {
    /// Position in the listing, which is sorted by key.
    pub id: u64,
    /// Relative path or member name, with `/` between folders.
    pub key: String,
    /// Class, where the source or a label file tells it.
    pub label: Option<u32>,
    location: Location,
}

/// Where the bytes of an entry are.
#[derive(Clone)]
enum Location {
    /// In the file that the key leads to from the source's root.
    Key,
    /// In a file whose name is not UTF-8, so that the key does not lead to it.
    Path(Box<Path>),
    /// An object of its own.
    Object { object: Box<Object>, bytes: u64 },
    /// A stretch of an archive.
    Member { archive: u32, offset: u64, length: u64 },
    /// A value of an LMDB environment.
    Value { archive: u32, offset: u64, length: u64 },
    /// A zip member.
    Zipped { archive: u32, zipped: Zipped },
    /// A row of a Parquet file.
    Row { archive: u32, row: RowAt },
}

/// What a reader of sources finds, before it is sorted and labelled.
struct Listed {
    key: String,
    location: Location,
    label: Option<u32>,
    /// The top-level folder, within the archive if it is in one.
    folder: Option<String>,
}

impl Listed {
    fn new(key: String, location: Location) -> Self {
        let folder = key
            .split_once('/')
            .map(|(folder, _)| folder.to_owned())
            .filter(|folder| !folder.is_empty());
        Self { key, location, label: None, folder }
    }
}

/// All that opening a source finds.
#[derive(Default)]
struct Listing {
    root: PathBuf,
    archives: Vec<Blob>,
    images: Vec<Listed>,
    labels: Option<Labels>,
    classes: Vec<String>,
}

impl Source {
    /// Opens and lists the source that `config` names.
    ///
    /// # Errors
    /// [`IngestError`] if the configuration is invalid, the source cannot be listed, holds no
    /// image, names one twice, or exceeds `entries_max`.
    pub async fn open(config: &IngestConfig) -> Result<Self> {
        config.validate()?;
        let config = config.clone();
        tokio::task::spawn_blocking(move || Self::open_blocking(config))
            .await
            .expect("listing a source neither panics nor is cancelled")
    }

    fn open_blocking(config: IngestConfig) -> Result<Self> {
        let listing = if store::is_remote(&config.source) {
            list_remote(&config.source, &config)?
        } else {
            list_local(Path::new(&config.source), config.entries_max)?
        };
        if listing.images.is_empty() {
            return Err(IngestError::source(&config.source, "it holds no images"));
        }
        Self::from_listing(config, listing)
    }

    /// Labels and numbers what was found.
    fn from_listing(config: IngestConfig, mut listing: Listing) -> Result<Self> {
        if let Some(path) = &config.labels {
            listing.labels = Some(labels::read(path)?);
        }
        let labels_required = listing.labels.as_ref().is_some_and(|l| !l.by_key.is_empty());
        let classes = label(&mut listing, &config)?;
        let entries = number(listing.images, &config.source)?;
        let pool = ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|index| format!("ingest-{index}"))
            .build()
            .map_err(|error| IngestError::config("threads", error.to_string()))?;
        tracing::info!(
            source = config.source,
            entries = entries.len(),
            classes = classes.len(),
            threads = pool.current_num_threads(),
            "listed"
        );
        let permits = (config.fetch_bytes_max / FETCH_PERMIT_BYTES).max(1);
        Ok(Self {
            pool,
            decode_budget: Budget::new(config.decode_bytes_max),
            fetch_budget: Semaphore::new((permits as usize).min(u32::MAX as usize)),
            labels_required,
            root: listing.root,
            archives: listing.archives,
            row_groups: RowGroups::default(),
            entries,
            classes,
            config,
        })
    }

    /// The listing, sorted by key.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Class names in the order of the labels; empty if nothing tells classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The limits that the configuration sets a decoder.
    pub(crate) fn limits(&self) -> Limits {
        Limits { pixels_max: self.config.pixels_max }
    }
}

fn list_local(path: &Path, entries_max: usize) -> Result<Listing> {
    let metadata = fs::metadata(path).map_err(|error| {
        IngestError::source(
            path.display(),
            match error.kind() {
                io::ErrorKind::NotFound => "there is no such file or folder".to_owned(),
                _ => error.to_string(),
            },
        )
    })?;
    let name = path.to_string_lossy();
    if metadata.is_dir() {
        let found = folder::list(path, entries_max)?;
        if found.images.is_empty() {
            let archives = found.archives.into_iter();
            let archives = archives.map(|key| (Blob::File(path.join(&key)), key)).collect();
            return list_archives(archives, entries_max);
        }
        let dataset_json = path.join(DATASET_JSON);
        let labels = dataset_json.exists().then(|| labels::read(&dataset_json)).transpose()?;
        let root = path.to_path_buf();
        return Ok(Listing { root, images: found.images, labels, ..Listing::default() });
    }
    if let Some(format) = ArchiveFormat::of(&name) {
        return list_archive(Blob::File(path.to_path_buf()), format, entries_max);
    }
    if name.ends_with(".txt") {
        let root = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let images = list::list(path, entries_max)?;
        let classes = numbered_classes(&name, images.iter().filter_map(|image| image.label))?;
        return Ok(Listing { root, images, classes, ..Listing::default() });
    }
    let reason = "it is neither a folder, a .txt list, nor a .tar, .zip, .parquet or .mdb archive";
    Err(IngestError::source(path.display(), reason))
}

fn list_remote(uri: &str, config: &IngestConfig) -> Result<Listing> {
    let runtime = Handle::current();
    let remote = Remote::open(uri, config)?;
    if let Some(format) = ArchiveFormat::of(uri) {
        return list_archive(Blob::Object(remote.itself(&runtime)), format, config.entries_max);
    }
    let found = runtime.block_on(remote.list(config.entries_max))?;
    let (images, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| folder::is_image_name(&found.key));
    if images.is_empty() {
        let archives = others.into_iter().filter(|found| ArchiveFormat::of(&found.key).is_some());
        let archives = archives
            .map(|found| (Blob::Object(remote.object(found.path, &runtime)), found.key))
            .collect();
        return list_archives(archives, config.entries_max);
    }
    let images = images
        .into_iter()
        .map(|found| {
            let object = Box::new(remote.object(found.path, &runtime));
            Listed::new(found.key, Location::Object { object, bytes: found.bytes })
        })
        .collect();
    Ok(Listing { images, ..Listing::default() })
}

/// A source that is one archive: its members' names are the keys.
fn list_archive(archive: Blob, format: ArchiveFormat, entries_max: usize) -> Result<Listing> {
    let found = format.list(&archive, 0, entries_max)?;
    Ok(Listing {
        archives: vec![archive],
        images: found.images,
        labels: found.labels,
        classes: found.classes,
        ..Listing::default()
    })
}

/// A source of several archives: keys are prefixed with the archive's.
fn list_archives(mut archives: Vec<(Blob, String)>, entries_max: usize) -> Result<Listing> {
    archives.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
    let mut listing = Listing::default();
    for (archive, prefix) in archives {
        listing.add_archive(archive, &prefix, entries_max)?;
    }
    Ok(listing)
}

impl Listing {
    /// Adds the images of an archive under the name `prefix`, which leads their keys.
    fn add_archive(&mut self, archive: Blob, prefix: &str, entries_max: usize) -> Result<()> {
        let Some(format) = ArchiveFormat::of(prefix) else { return Ok(()) };
        let found = format.list(&archive, self.archives.len() as u32, entries_max)?;
        if let Some(labels) = found.labels {
            let all = self.labels.get_or_insert_default();
            let by_key = labels.by_key.into_iter();
            all.by_key.extend(by_key.map(|(key, label)| (format!("{prefix}/{key}"), label)));
            if all.classes.len() < labels.classes.len() {
                all.classes = labels.classes;
            }
        }
        self.images.extend(found.images.into_iter().map(|mut image| {
            image.key = format!("{prefix}/{}", image.key);
            image
        }));
        if self.classes.len() < found.classes.len() {
            self.classes = found.classes;
        }
        self.archives.push(archive);
        check_count(&prefix, self.images.len(), entries_max)
    }
}

/// Gives every image its class; returns the classes' names.
fn label(listing: &mut Listing, config: &IngestConfig) -> Result<Vec<String>> {
    let images = &mut listing.images;
    if let Some(labels) = &listing.labels {
        for image in images {
            image.label = labels.by_key.get(&image.key).copied();
        }
        return Ok(labels.classes.clone());
    }
    if images.iter().any(|image| image.label.is_some()) {
        let named = listing.classes.len() as u32;
        if images.iter().filter_map(|image| image.label).all(|label| label < named) {
            return Ok(std::mem::take(&mut listing.classes));
        }
        return numbered_classes(&config.source, images.iter().filter_map(|image| image.label));
    }
    if !config.class_folders {
        return Ok(Vec::new());
    }
    let mut classes: Vec<String> = images.iter().filter_map(|image| image.folder.clone()).collect();
    classes.sort_unstable();
    classes.dedup();
    for image in images {
        image.label = image
            .folder
            .as_ref()
            .and_then(|folder| classes.binary_search(folder).ok())
            .map(|class| class as u32);
    }
    Ok(classes)
}

/// Sorts by key and numbers.
fn number(mut images: Vec<Listed>, source: &str) -> Result<Vec<Entry>> {
    images.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    if let Some(pair) = images.windows(2).find(|pair| pair[0].key == pair[1].key) {
        return Err(IngestError::Member {
            archive: source.to_owned(),
            member: pair[0].key.clone(),
            reason: "it is there twice".into(),
        });
    }
    let entry = |(id, Listed { key, location, label, .. })| Entry { id, key, label, location };
    Ok((0..).zip(images).map(entry).collect())
}

/// More classes than this are taken for a mistake.
const CLASSES_MAX: u32 = 1 << 20;

/// Names for classes that are only numbered: the numbers.
fn numbered_classes(
    source: &dyn Display,
    labels: impl Iterator<Item = u32>,
) -> Result<Vec<String>> {
    match labels.max() {
        Some(max) if max >= CLASSES_MAX => {
            let reason = format!("class {max} is beyond the {CLASSES_MAX} classes allowed");
            Err(IngestError::source(source, reason))
        }
        Some(max) => Ok((0..=max).map(|label| label.to_string()).collect()),
        None => Ok(Vec::new()),
    }
}

fn check_count(source: &dyn Display, count: usize, entries_max: usize) -> Result<()> {
    if count <= entries_max {
        return Ok(());
    }
    Err(IngestError::source(source, format!("more than entries_max = {entries_max} entries")))
}
