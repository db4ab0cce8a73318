//! A folder of byte ranges fetched from storage, shared by any number of processes.
//!
//! Data files never change, so an entry is valid for as long as it is there. Entries appear by
//! renaming and carry a checksum: whatever a crash or a full disk leaves behind is fetched anew.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::buffers::Buffer;
use crate::error::{Result, StoreError};

/// Ends the names of whole entries. Files named otherwise are not the cache's, and stay.
const ENTRY: &str = ".lapflow-range";
/// Ends the names of entries being written.
const PARTIAL: &str = ".lapflow-partial";
/// Held while bytes are being accounted for; holds the bytes used, as text.
const LOCK: &str = "lapflow-cache.lock";
/// Age after which an entry being written belongs to a process that died.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(3600);
/// Part of the limit that is freed beyond what is needed, so that the folder is seldom listed.
const SLACK_DIVISOR: u64 = 16;
/// Bytes after an entry's content: its CRC-32.
const CRC_BYTES: usize = 4;

/// A local disk cache for what is read of datasets ([`crate::Dataset::with_cache`]).
///
/// The folder may be shared by processes and datasets. It never holds more than `bytes_max` bytes
/// of entries: the one that was not used for longest goes first, and nothing but what a cache wrote
/// is ever removed. A cache that cannot be written costs speed only.
#[derive(Debug)]
pub struct DiskCache {
    folder: PathBuf,
    bytes_max: u64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl DiskCache {
    /// A cache in `folder`, which is made where it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Address`] where the folder cannot be made.
    pub fn new(folder: impl Into<PathBuf>, bytes_max: u64) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|error| StoreError::Address {
            uri: folder.display().to_string(),
            reason: format!("the cache's folder cannot be created: {error}"),
        })?;
        let (hits, misses) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { folder, bytes_max, hits, misses })
    }

    /// Reads that this process found in the cache.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Reads that this process did not find in the cache.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Name of the entry with bytes `start..end` of the file `path` of the dataset at `uri`.
    pub(crate) fn name(uri: &str, path: &str, range: &std::ops::Range<u64>) -> String {
        let digest = Sha256::digest(format!("{uri}\n{path}"));
        let digest: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{digest}-{:x}-{:x}{ENTRY}", range.start, range.end)
    }

    /// The entry `name` of `length` bytes, if it is there and whole.
    pub(crate) fn get(&self, name: &str, length: usize) -> Option<Bytes> {
        let path = self.folder.join(name);
        let content = read_entry(&path, length);
        let counter = if content.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        content
    }

    /// Keeps `content` as `name`. Failures are logged and no more.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        if let Err(error) = self.try_put(name, content) {
            tracing::warn!(folder = %self.folder.display(), %error, "nothing kept in the cache");
        }
    }

    fn try_put(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let size = (content.len() + CRC_BYTES) as u64;
        if size > self.bytes_max {
            return Ok(());
        }
        let partial = self.folder.join(format!("{:016x}{PARTIAL}", rand::random::<u64>()));
        let mut file = self.reserve(&partial, size)?;
        let written = file
            .write_all(content)
            .and_then(|()| file.write_all(&crc32fast::hash(content).to_le_bytes()))
            .and_then(|()| fs::rename(&partial, self.folder.join(name)));
        if written.is_err() {
            // Its bytes stay accounted for until the folder is next listed.
            let _ = fs::remove_file(&partial);
        }
        written
    }

    /// Makes room for `size` bytes and takes them, in one step among all processes.
    fn reserve(&self, partial: &Path, size: u64) -> io::Result<File> {
        let options = File::options().read(true).write(true).create(true).truncate(false).clone();
        let mut account = options.open(self.folder.join(LOCK))?;
        account.lock()?;
        let mut text = String::new();
        account.read_to_string(&mut text)?;
        let used = match text.trim().parse::<u64>() {
            Ok(used) if used.saturating_add(size) <= self.bytes_max => used,
            _ => self.make_room(size)?,
        };
        let file = File::create_new(partial)?;
        file.set_len(size)?;
        account.rewind()?;
        account.set_len(0)?;
        account.write_all((used + size).to_string().as_bytes())?;
        Ok(file)
    }

    /// Removes the entries not used for longest until `size` bytes fit; the bytes still there.
    fn make_room(&self, size: u64) -> io::Result<u64> {
        let mut entries = Vec::new();
        let mut used = 0;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Another process may have renamed or removed it meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let age = SystemTime::now().duration_since(modified).unwrap_or_default();
            if name.ends_with(PARTIAL) && age > PARTIAL_AGE_MAX {
                fs::remove_file(entry.path())?;
            } else if name.ends_with(ENTRY) {
                used += metadata.len();
                entries.push((modified, metadata.len(), entry.path()));
            } else if name.ends_with(PARTIAL) {
                used += metadata.len();
            }
        }
        let target = self.bytes_max.saturating_sub(size.max(self.bytes_max / SLACK_DIVISOR));
        entries.sort_unstable();
        for (_, bytes, path) in entries {
            if used <= target {
                break;
            }
            if fs::remove_file(path).is_ok() {
                used -= bytes;
            }
        }
        match used.saturating_add(size) <= self.bytes_max {
            true => Ok(used),
            false => Err(io::Error::other("all of it is being written by others")),
        }
    }
}

fn read_entry(path: &Path, length: usize) -> Option<Bytes> {
    let mut file = File::open(path).ok()?;
    let whole = file.metadata().ok()?.len() == (length + CRC_BYTES) as u64;
    let mut buffer = Buffer::take(length + CRC_BYTES);
    if !whole || file.read_exact(&mut buffer).is_err() {
        return None;
    }
    let (content, crc) = buffer.split_at(length);
    if crc32fast::hash(content).to_le_bytes() != crc {
        return None;
    }
    // The time of last use; without it the entry only goes earlier.
    let _ = file.set_modified(SystemTime::now());
    Some(Bytes::from_owner(buffer).slice(..length))
}
