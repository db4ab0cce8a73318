//! What images a source holds, under which names and labels.

mod archive;
mod blob;
mod folder;
mod labels;
mod list;
mod lmdb;
mod names;
mod parquet;
mod read;
mod store;
mod survey;
mod tar;
mod zip;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::archive::ArchiveFormat;
use self::blob::{Blob, Object};
use self::folder::FolderListing;
use self::labels::{Labels, Written};
use self::parquet::{RowAt, RowGroups};
use self::store::{Found, Remote};
use self::zip::{DATASET_JSON, Zipped};
use crate::budget::Budget;
use crate::config::IngestConfig;
use crate::decode::Limits;
use crate::error::{IngestError, Result};
use crate::left_out::LeftOut;

pub use self::folder::image_files;
pub use self::survey::{Opened, Pick, Piece, Survey};

/// An opened source: its sorted listing, and the threads that decode its images.
///
/// What `data.source` names decides how it is read:
///
/// | source | entries | label |
/// |---|---|---|
/// | a folder | every image file beneath it | its top-level folder, numbered in sorted order |
/// | a `.txt` file | one path a line, relative to the list | behind a tab, comma or blank, else as in a folder |
/// | a `.tar` | its image members | WebDataset's `.cls` members, else as in a folder |
/// | a `.zip` | its image members | EDM's `dataset.json`, else as in a folder |
/// | a `.parquet` | its rows, images in a struct with a field `bytes` | the column `label`, or the only class in Hugging Face's metadata |
/// | a `.mdb` or `.lmdb` | the values of an LMDB database: image files, or squares of RGB pixels | none |
/// | a folder of archives | theirs, keys prefixed with the archive's | theirs |
///
/// All but lists may be `s3://`, `gs://` and `az://` URIs. A `dataset.json` at the top of a
/// folder labels it as one in a zip does. A label file in the configuration replaces all this,
/// and then an image that it does not name is a skip. Labels that are names are numbered in sorted
/// order over the whole source.
///
/// What a source holds beside its images is counted ([`Source::left_out`]), but hidden files
/// (`.name`, `__MACOSX`). Loose images beside archives are refused. Names that are not UTF-8 keep
/// their bytes, as `\xNN`.
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
    left_out: LeftOut,
    notes: Vec<String>,
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
    /// The name of its class, where the source states one.
    class: Option<Arc<str>>,
    /// The top-level folder, within the archive if it is in one.
    folder: Option<String>,
}

impl Listed {
    fn new(key: String, location: Location) -> Self {
        let folder = key
            .split_once('/')
            .map(|(folder, _)| folder.to_owned())
            .filter(|folder| !folder.is_empty());
        Self { key, location, label: None, class: None, folder }
    }

    /// The same with the label that the source states.
    fn labelled(mut self, label: Written) -> Self {
        match label {
            Written::None => {}
            Written::Number(number) => self.label = Some(number),
            Written::Name(name) => self.class = Some(name.into()),
        }
        self
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
    left_out: LeftOut,
    notes: Vec<String>,
}

impl Source {
    /// Opens and lists the source that `config` names.
    ///
    /// # Errors
    /// [`IngestError`] if the configuration is invalid, the source cannot be listed, holds no
    /// image, names one twice, or exceeds `entries_max`.
    pub async fn open(config: &IngestConfig) -> Result<Self> {
        config.validate()?;
        config.require_source()?;
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
            let reason = match listing.left_out.is_empty() {
                true => "it holds no images".to_owned(),
                false => format!("it holds no images, only {}", listing.left_out),
            };
            return Err(IngestError::source(&config.source, reason));
        }
        Self::from_listing(config, listing)
    }

    /// Labels and numbers what was found.
    fn from_listing(config: IngestConfig, mut listing: Listing) -> Result<Self> {
        if let Some(path) = &config.labels {
            listing.labels = Some(labels::read(path, &listing.images)?);
        }
        if let Some(labels) = &mut listing.labels {
            listing.notes.append(&mut labels.notes);
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
            left_out: listing.left_out,
            notes: listing.notes,
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

    /// What a user should know of how the source was understood, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was found beside the images.
    pub fn left_out(&self) -> &LeftOut {
        &self.left_out
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
        one_kind(&name, &found.images, found.archives.iter().map(|(key, _)| key))?;
        if found.images.is_empty() {
            let archives = found.archives.into_iter();
            let archives = archives.map(|(key, path)| (Blob::File(path), key)).collect();
            return list_archives(archives, found.left_out, entries_max);
        }
        let labels = dataset_json(&Blob::File(path.join(DATASET_JSON)))?;
        let root = path.to_path_buf();
        let FolderListing { images, left_out, .. } = found;
        return Ok(Listing { root, images, labels, left_out, ..Listing::default() });
    }
    if let Some(format) = ArchiveFormat::of(&name) {
        return list_archive(Blob::File(path.to_path_buf()), format, entries_max);
    }
    if name.ends_with(".txt") {
        let root = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let images = list::list(path, entries_max)?;
        return Ok(Listing { root, images, ..Listing::default() });
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
    let (mut images, mut archives, mut left_out) = (Vec::new(), Vec::new(), found.left_out);
    let mut labels = None;
    for Found { key, path, bytes } in found.objects {
        let object = remote.object(path, &runtime);
        if names::is_image(&key) {
            let location = Location::Object { object: Box::new(object), bytes };
            images.push(Listed::new(key, location));
        } else if ArchiveFormat::of(&key).is_some() {
            archives.push((Blob::Object(object), key));
        } else if key == DATASET_JSON {
            labels = Some(Blob::Object(object));
        } else {
            left_out.add(names::ending(&key));
        }
    }
    one_kind(uri, &images, archives.iter().map(|(_, key)| key))?;
    if images.is_empty() {
        return list_archives(archives, left_out, config.entries_max);
    }
    let labels = labels.map(|blob| dataset_json(&blob)).transpose()?.flatten();
    Ok(Listing { images, labels, left_out, ..Listing::default() })
}

/// The labels of EDM's `dataset.json` at the top of a folder or prefix, if it has one.
fn dataset_json(blob: &Blob) -> Result<Option<Labels>> {
    let content = blob.length().and_then(|length| blob.read_range(0..length));
    match content {
        Ok(content) => labels::from_json(&blob.to_string(), &content).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(IngestError::labels(blob, error)),
    }
}

/// Refuses loose images beside archives of images: a banner beside shards is no training data, and
/// shards beside loose images are hardly meant to be left out.
fn one_kind<'a>(
    source: &str,
    images: &[Listed],
    archives: impl ExactSizeIterator<Item = &'a String>,
) -> Result<()> {
    let (loose, packed) = (images.len(), archives.len());
    let (Some(image), Some(archive)) = (images.iter().map(|i| &i.key).min(), archives.min()) else {
        return Ok(());
    };
    let reason = format!(
        "it holds {loose} loose images ({image}, ..) and {packed} archives ({archive}, ..): name \
         the folder of either"
    );
    Err(IngestError::source(source, reason))
}

/// A source that is one archive: its members' names are the keys.
fn list_archive(archive: Blob, format: ArchiveFormat, entries_max: usize) -> Result<Listing> {
    let found = format.list(&archive, 0, entries_max)?;
    Ok(Listing {
        archives: vec![archive],
        images: found.images,
        labels: found.labels,
        classes: found.classes,
        left_out: found.left_out,
        notes: found.notes,
        ..Listing::default()
    })
}

/// A source of several archives: keys are prefixed with the archive's.
fn list_archives(
    mut archives: Vec<(Blob, String)>,
    left_out: LeftOut,
    entries_max: usize,
) -> Result<Listing> {
    archives.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
    let mut listing = Listing { left_out, ..Listing::default() };
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
        self.left_out.append(found.left_out);
        if found.images.is_empty() {
            self.notes.push(format!("{archive} holds no images"));
        }
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
        self.notes.extend(found.notes);
        // One archive may know more classes than another, but none by other names.
        let shared = self.classes.iter().zip(&found.classes);
        if let Some((here, there)) = shared.clone().find(|(here, there)| here != there) {
            let reason = format!("a class is called `{there}` in it, `{here}` in those before");
            return Err(IngestError::source(&archive, reason));
        }
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
    let (numbered, named) = images.iter().fold((false, false), |(numbered, named), image| {
        (numbered || image.label.is_some(), named || image.class.is_some())
    });
    if numbered && named {
        let reason = "some of its labels are class numbers and others class names";
        return Err(IngestError::source(&config.source, reason));
    }
    if numbered {
        let named = listing.classes.len() as u32;
        if images.iter().filter_map(|image| image.label).all(|label| label < named) {
            return Ok(std::mem::take(&mut listing.classes));
        }
        return numbered_classes(&config.source, images.iter().filter_map(|image| image.label));
    }
    if !named && !config.class_folders {
        return Ok(Vec::new());
    }
    let class = |image: &Listed| match named {
        true => image.class.as_deref().map(str::to_owned),
        false => image.folder.clone(),
    };
    let classes: BTreeSet<String> = images.iter().filter_map(class).collect();
    let classes: Vec<String> = classes.into_iter().collect();
    for image in images {
        let class = class(image).and_then(|class| classes.binary_search(&class).ok());
        image.label = class.map(|class| class as u32);
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
