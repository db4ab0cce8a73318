//! What images a source holds, under which names and labels.

pub(crate) mod folder;
mod list;

use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::budget::Budget;
use crate::config::IngestConfig;
use crate::decode::Limits;
use crate::error::{IngestError, Result};
use crate::skip::SkipReason;

/// An opened source: its sorted listing, and the threads that decode its images.
///
/// What `data.source` names decides how it is read:
///
/// | source | entries | label |
/// |---|---|---|
/// | a folder | every image file beneath it | its top-level folder, numbered in sorted order |
/// | a `.txt` file | one path a line, relative to the list | after a tab, else as in a folder |
///
/// Memory while streaming stays below `decode_bytes_max` (or the needs of a single image, if
/// they are greater) + `threads * bytes_max` for the files being read +
/// `queue_images_max * 3 * size^2` for finished images, twice that with `flip`.
pub struct Source {
    pub(crate) config: IngestConfig,
    pub(crate) pool: ThreadPool,
    pub(crate) budget: Budget,
    root: PathBuf,
    entries: Vec<Entry>,
    classes: Vec<String>,
}

/// One image of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Position in the listing, which is sorted by key.
    pub id: u64,
    /// Relative path or member name, with `/` between folders.
    pub key: String,
    /// Class, where the source or a label file tells it.
    pub label: Option<u32>,
    /// The path of a file whose name is not UTF-8, so that the key does not lead to it.
    odd_path: Option<Box<Path>>,
}

/// What a reader of sources finds, before it is sorted and labelled.
struct Listed {
    key: String,
    odd_path: Option<Box<Path>>,
    label: Option<u32>,
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
        let (root, listed) = list_local(Path::new(&config.source), config.entries_max)?;
        if listed.is_empty() {
            return Err(IngestError::source(&config.source, "it holds no images"));
        }
        let (entries, classes) = label(listed, &config)?;
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
        let budget = Budget::new(config.decode_bytes_max);
        Ok(Self { config, pool, budget, root, entries, classes })
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

    /// The bytes of `entry`.
    pub(crate) fn read(&self, entry: &Entry) -> Result<Vec<u8>, SkipReason> {
        let path = match &entry.odd_path {
            Some(path) => path.to_path_buf(),
            None => self.root.join(&entry.key),
        };
        read_file(&path, self.config.bytes_max)
    }
}

/// Lists a local source; with it, the folder that its keys are relative to.
fn list_local(path: &Path, entries_max: usize) -> Result<(PathBuf, Vec<Listed>)> {
    let metadata = fs::metadata(path).map_err(|error| {
        IngestError::source(
            path.display(),
            match error.kind() {
                io::ErrorKind::NotFound => "there is no such file or folder".to_owned(),
                _ => error.to_string(),
            },
        )
    })?;
    if metadata.is_dir() {
        return Ok((path.to_path_buf(), folder::list(path, entries_max)?));
    }
    if path.extension().is_some_and(|extension| extension == "txt") {
        let root = path.parent().unwrap_or(Path::new("")).to_path_buf();
        return Ok((root, list::list(path, entries_max)?));
    }
    Err(IngestError::source(path.display(), "it is neither a folder nor a .txt list of files"))
}

/// Sorts by key, numbers, and gives every entry its class.
fn label(mut listed: Vec<Listed>, config: &IngestConfig) -> Result<(Vec<Entry>, Vec<String>)> {
    listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    if let Some(pair) = listed.windows(2).find(|pair| pair[0].key == pair[1].key) {
        return Err(IngestError::Member {
            archive: config.source.clone(),
            member: pair[0].key.clone(),
            reason: "it is there twice".into(),
        });
    }
    let classes = if let Some(max) = listed.iter().filter_map(|found| found.label).max() {
        (0..=max).map(|label| label.to_string()).collect()
    } else if config.class_folders {
        label_by_folder(&mut listed)
    } else {
        Vec::new()
    };
    let entries = (0..)
        .zip(listed)
        .map(|(id, Listed { key, odd_path, label })| Entry { id, key, label, odd_path })
        .collect();
    Ok((entries, classes))
}

/// Numbers the top-level folders in sorted order, as everyone does for ImageNet.
fn label_by_folder(listed: &mut [Listed]) -> Vec<String> {
    let folder_of = |key: &str| {
        key.split_once('/').map(|(folder, _)| folder.to_owned()).filter(|name| !name.is_empty())
    };
    let mut classes: Vec<String> =
        listed.iter().filter_map(|found| folder_of(&found.key)).collect();
    classes.sort_unstable();
    classes.dedup();
    for found in listed {
        found.label = folder_of(&found.key)
            .and_then(|folder| classes.binary_search(&folder).ok())
            .map(|class| class as u32);
    }
    classes
}

fn check_count(source: &dyn Display, count: usize, entries_max: usize) -> Result<()> {
    if count <= entries_max {
        return Ok(());
    }
    Err(IngestError::source(source, format!("more than entries_max = {entries_max} entries")))
}

/// Reads a file of at most `bytes_max` bytes, whatever its length claims to be.
fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, SkipReason> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => SkipReason::Vanished,
        _ => SkipReason::Unreadable { detail: error.to_string() },
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes > bytes_max {
        return Err(SkipReason::TooManyBytes { bytes, bytes_max });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    // A file may grow between the two calls; one byte more than allowed tells.
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > bytes_max {
        return Err(SkipReason::TooManyBytes { bytes: content.len() as u64, bytes_max });
    }
    Ok(content)
}
