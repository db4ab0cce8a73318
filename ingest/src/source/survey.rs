//! What a folder or prefix holds at one moment, for those who follow a source that grows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::runtime::Handle;

use super::archive::ArchiveFormat;
use super::blob::Blob;
use super::store::{self, Remote};
use super::zip::DATASET_JSON;
use super::{Entry, Listing, Location, Source, folder, names};
use crate::config::IngestConfig;
use crate::error::{IngestError, Result};

/// A file beneath a source: an image, or an archive of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Path relative to the source, with `/` between folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last changed, where that is known.
    pub modified: Option<SystemTime>,
}

/// The files beneath a folder or an object store's prefix at one moment: both images and archives,
/// whereas [`Source::open`] looks into archives only where there are no images beside them.
pub struct Survey {
    config: IngestConfig,
    root: PathBuf,
    /// EDM's label file at the top.
    labels: Option<Blob>,
    pieces: BTreeMap<String, (Piece, Place)>,
}

/// How to reach a piece.
#[derive(Clone)]
enum Place {
    Image(Location),
    Archive(Blob),
}

/// Some pieces, opened; and those that could not be.
pub struct Opened {
    /// The images of the pieces that could be opened; perhaps none.
    pub source: Source,
    /// Name and error of each archive that cannot be listed.
    pub failed: Vec<(String, IngestError)>,
}

impl Survey {
    /// Looks at the folder or prefix that `config` names; archives are not opened.
    ///
    /// # Errors
    /// [`IngestError`] if the configuration is invalid, the source is neither a folder nor a
    /// prefix or cannot be listed, or it exceeds `entries_max`.
    pub async fn take(config: &IngestConfig) -> Result<Self> {
        config.validate()?;
        config.require_source()?;
        let config = config.clone();
        tokio::task::spawn_blocking(move || Self::take_blocking(config))
            .await
            .expect("listing a source neither panics nor is cancelled")
    }

    fn take_blocking(config: IngestConfig) -> Result<Self> {
        if ArchiveFormat::of(&config.source).is_some() || config.source.ends_with(".txt") {
            let reason = "only folders and prefixes can be followed, not a single archive or list";
            return Err(IngestError::source(&config.source, reason));
        }
        let (labels, pieces) = match store::is_remote(&config.source) {
            true => remote_pieces(&config)?,
            false => local_pieces(Path::new(&config.source), config.entries_max)?,
        };
        let root = PathBuf::from(&config.source);
        Ok(Self { config, root, labels, pieces })
    }

    /// The files, sorted by name.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = &Piece> {
        self.pieces.values().map(|(piece, _)| piece)
    }

    /// The file that the image `key` is, or is in.
    pub fn piece_of(&self, key: &str) -> Option<&str> {
        let ends = key.match_indices('/').map(|(end, _)| end).chain([key.len()]);
        ends.filter_map(|end| self.pieces.get_key_value(&key[..end]))
            .map(|(name, _)| name.as_str())
            .next()
    }

    /// Opens the pieces called `names`, as [`Source::open`] opens all of them; unknown names are
    /// passed over. Labels are numbered among the images opened: [`Source::classes`] names them.
    ///
    /// # Errors
    /// [`IngestError`] if a label file cannot be read. An archive that cannot be listed does not
    /// hinder the others.
    pub async fn open(&self, names: Vec<String>) -> Result<Opened> {
        let (config, root) = (self.config.clone(), self.root.clone());
        let labels = self.labels.clone();
        let places: Vec<_> = names
            .into_iter()
            .filter_map(|name| self.pieces.get(&name).map(|(_, place)| (name, place.clone())))
            .collect();
        tokio::task::spawn_blocking(move || open_blocking(config, root, labels, places))
            .await
            .expect("listing a source neither panics nor is cancelled")
    }
}

fn open_blocking(
    config: IngestConfig,
    root: PathBuf,
    labels: Option<Blob>,
    places: Vec<(String, Place)>,
) -> Result<Opened> {
    let mut listing = Listing::default();
    let mut failed = Vec::new();
    listing.labels = labels.map(|blob| super::dataset_json(&blob)).transpose()?.flatten();
    listing.root = root;
    for (name, place) in places {
        match place {
            Place::Image(location) => listing.images.push(super::Listed::new(name, location)),
            Place::Archive(blob) => {
                let images = listing.images.len();
                let added = listing
                    .add_archive(blob, &name, config.entries_max)
                    .and_then(|()| unique(&name, &mut listing.images[images..]));
                if let Err(error) = added {
                    listing.images.truncate(images);
                    failed.push((name, error));
                }
            }
        }
    }
    Ok(Opened { source: Source::from_listing(config, listing)?, failed })
}

/// Refuses an archive with two members of one name.
fn unique(archive: &str, images: &mut [super::Listed]) -> Result<()> {
    images.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    match images.windows(2).find(|pair| pair[0].key == pair[1].key) {
        None => Ok(()),
        Some(pair) => Err(IngestError::Member {
            archive: archive.to_owned(),
            member: pair[0].key.clone(),
            reason: "it is there twice".into(),
        }),
    }
}

/// The label file and the pieces of a source.
type Pieces = (Option<Blob>, BTreeMap<String, (Piece, Place)>);

fn local_pieces(root: &Path, entries_max: usize) -> Result<Pieces> {
    let found = folder::list(root, entries_max)?;
    let images = found.images.into_iter().map(|image| (image.key, Place::Image(image.location)));
    let archives =
        found.archives.into_iter().map(|(name, path)| (name, Place::Archive(Blob::File(path))));
    let pieces = images.chain(archives).filter_map(|(name, place)| {
        let path = match &place {
            Place::Image(Location::Path(path)) => path.to_path_buf(),
            Place::Archive(Blob::File(path)) => path.clone(),
            _ => root.join(&name),
        };
        // What is gone since it was listed is not there.
        let metadata = fs::metadata(path).ok()?;
        let (bytes, modified) = (metadata.len(), metadata.modified().ok());
        Some((name.clone(), (Piece { name, bytes, modified }, place)))
    });
    Ok((Some(Blob::File(root.join(DATASET_JSON))), pieces.collect()))
}

fn remote_pieces(config: &IngestConfig) -> Result<Pieces> {
    let runtime = Handle::current();
    let remote = Remote::open(&config.source, config)?;
    let found = runtime.block_on(remote.list(config.entries_max))?;
    let mut labels = None;
    let pieces = found.objects.into_iter().filter_map(|found| {
        let (name, bytes) = (found.key, found.bytes);
        let object = remote.object(found.path, &runtime);
        let place = if names::is_image(&name) {
            Place::Image(Location::Object { object: Box::new(object), bytes })
        } else if ArchiveFormat::of(&name).is_some() {
            Place::Archive(Blob::Object(object))
        } else {
            if name == DATASET_JSON {
                labels = Some(Blob::Object(object));
            }
            return None;
        };
        Some((name.clone(), (Piece { name, bytes, modified: None }, place)))
    });
    let pieces = pieces.collect();
    Ok((labels, pieces))
}

/// An image asked for by name, under an identity given from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// Its key.
    pub key: String,
    /// The id it is to have, on which its random crop depends.
    pub id: u64,
    /// The label it is to have.
    pub label: Option<u32>,
}

impl Source {
    /// This source with the entries that `picks` name alone, in their order and with their ids and
    /// labels; and the picks that are not among its entries.
    pub fn select(mut self, picks: Vec<Pick>) -> (Self, Vec<Pick>) {
        let mut entries = Vec::with_capacity(picks.len());
        let mut missing = Vec::new();
        for pick in picks {
            match self.entries.binary_search_by(|entry| entry.key.cmp(&pick.key)) {
                Ok(found) => {
                    let location = self.entries[found].location.clone();
                    entries.push(Entry { id: pick.id, key: pick.key, label: pick.label, location });
                }
                Err(_) => missing.push(pick),
            }
        }
        self.entries = entries;
        self.labels_required = false;
        (self, missing)
    }

    /// Whether an image without a label is left out.
    pub fn requires_labels(&self) -> bool {
        self.labels_required
    }
}
