//! A dataset: the table at one version, with its metadata and shards.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use delta_kernel::SnapshotRef;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use parquet::file::metadata::ParquetMetaData;

use crate::beside::FOLDER as BESIDE;
use crate::cache::DiskCache;
use crate::error::{Result, StoreError};
use crate::location::{Location, RETRIES_MAX, backoff, blocking, on_runtime};
use crate::metadata::{FORMAT_VERSION, Metadata};
use crate::schema::arrow_schema;
use crate::shard::ShardSummary;
use crate::statistics::Statistics;
use crate::table::{CREATION_PROPERTY, DataFile, Table, creation_of};
use crate::writer::{ShardOptions, ShardWriter};

/// Table property with the format's version, read before anything else is interpreted.
const VERSION_PROPERTY: &str = "lapflow.formatVersion";
/// Table property with [`Metadata`] as JSON.
const METADATA_PROPERTY: &str = "lapflow.metadata";
/// Footers kept in memory (about 50 KB each).
const FOOTERS_MAX: usize = 256;

/// A dataset at one version. Cheap to clone; later commits show after [`Dataset::refresh`].
#[derive(Clone)]
pub struct Dataset {
    inner: Arc<Inner>,
    cache: Option<Arc<DiskCache>>,
}

struct Inner {
    location: Location,
    table: Table,
    snapshot: SnapshotRef,
    metadata: Metadata,
    files: Vec<DataFile>,
    footers: Footers,
}

impl Dataset {
    /// Creates an empty dataset at `uri` (a path, `file://`, `s3://`, `gs://` or `az://`).
    ///
    /// # Errors
    /// [`StoreError::Exists`] where there is one already, whoever created it.
    pub async fn create(uri: &str, metadata: &Metadata) -> Result<Self> {
        let location = Location::resolve(uri)?;
        metadata
            .validate()
            .map_err(|reason| StoreError::Metadata { uri: location.url.to_string(), reason })?;
        let schema = arrow_schema(metadata);
        let json = serde_json::to_string(metadata).map_err(|error| StoreError::Metadata {
            uri: location.url.to_string(),
            reason: error.to_string(),
        })?;
        let properties = [
            (VERSION_PROPERTY, metadata.format_version.to_string()),
            (METADATA_PROPERTY, json),
            (CREATION_PROPERTY, format!("{:032x}", rand::random::<u128>())),
            ("delta.appendOnly", "true".to_string()),
            ("delta.enableExpiredLogCleanup", "false".to_string()),
            ("delta.dataSkippingStatsColumns", "id,label".to_string()),
        ];
        let properties = properties.map(|(key, value)| (key.to_string(), value)).to_vec();
        let table = Table::new(location.clone());
        let (creating, creator) = (table.clone(), schema);
        blocking(move || creating.create(&creator, properties)).await?;
        Self::load(location, table, None).await
    }

    /// Opens the newest version of the dataset at `uri`.
    pub async fn open(uri: &str) -> Result<Self> {
        let location = Location::resolve(uri)?;
        Self::load(location.clone(), Table::new(location), None).await
    }

    /// Opens `version` of the dataset at `uri`: what it held after that many commits.
    pub async fn open_at(uri: &str, version: u64) -> Result<Self> {
        let location = Location::resolve(uri)?;
        Self::load(location.clone(), Table::new(location), Some(version)).await
    }

    /// The same dataset as it is now.
    pub async fn refresh(&self) -> Result<Self> {
        let found = Self::load(self.inner.location.clone(), self.inner.table.clone(), None).await?;
        Ok(Self { cache: self.cache.clone(), ..found })
    }

    /// The same dataset at `version`.
    pub async fn at_version(&self, version: u64) -> Result<Self> {
        if version == self.version() {
            return Ok(self.clone());
        }
        let (location, table) = (self.inner.location.clone(), self.inner.table.clone());
        let found = Self::load(location, table, Some(version)).await?;
        Ok(Self { cache: self.cache.clone(), ..found })
    }

    /// Makes the dataset anew with `metadata`, where it holds no shard: what a job left that came to
    /// nothing is in nobody's way. Where another has done so meanwhile, that one is opened. A writer
    /// that still works for the old one cannot commit into the new.
    ///
    /// # Errors
    /// [`StoreError::Exists`] where it holds a shard by now.
    pub async fn recreate(&self, metadata: &Metadata) -> Result<Self> {
        let newest = self.refresh().await?;
        if newest.shards().len() > 0 {
            return Err(StoreError::Exists { uri: self.uri().to_string() });
        }
        if newest.creation() != self.creation() {
            return Ok(newest);
        }
        // The log first: without one there is no table.
        for folder in ["_delta_log", BESIDE] {
            self.remove_folder(folder).await?;
        }
        match Self::create(self.uri(), metadata).await {
            Err(StoreError::Exists { .. }) => Self::open(self.uri()).await,
            created => created,
        }
    }

    async fn remove_folder(&self, folder: &str) -> Result<()> {
        let (store, path) = (Arc::clone(&self.location().store), self.location().path(folder));
        let prefix = path.clone();
        on_runtime(async move {
            let files: Vec<_> = store.list(Some(&prefix)).try_collect().await?;
            for file in files {
                store.delete(&file.location).await?;
            }
            Ok(())
        })
        .await
        .map_err(|error| self.location().failed("deleting", &path, error))
    }

    /// What tells this table from one that is made in its place.
    pub(crate) fn creation(&self) -> Option<&str> {
        creation_of(&self.inner.snapshot)
    }

    /// The same dataset, read through `cache`, and so all that is made of it.
    pub fn with_cache(&self, cache: Arc<DiskCache>) -> Self {
        Self { inner: Arc::clone(&self.inner), cache: Some(cache) }
    }

    async fn load(location: Location, table: Table, version: Option<u64>) -> Result<Self> {
        blocking(move || {
            let repeat = if location.is_local() { 0 } else { RETRIES_MAX };
            for failures in 0..repeat {
                match Self::load_once(&location, &table, version) {
                    Err(error @ (StoreError::Log { .. } | StoreError::Storage { .. })) => {
                        tracing::warn!(%error, "opening failed, once more");
                        std::thread::sleep(backoff(failures));
                    }
                    outcome => return outcome,
                }
            }
            Self::load_once(&location, &table, version)
        })
        .await
    }

    fn load_once(location: &Location, table: &Table, version: Option<u64>) -> Result<Self> {
        let snapshot = table.snapshot(version)?;
        let metadata = read_metadata(location.url.as_str(), snapshot.metadata_configuration())?;
        let files = table.files(&snapshot)?;
        for file in &files {
            file.summary.validate(&metadata, file.size).map_err(|reason| {
                StoreError::corrupt(&file.path, "its entry in the log", reason)
            })?;
        }
        let (location, table) = (location.clone(), table.clone());
        let footers = Footers::default();
        let inner = Inner { location, table, snapshot, metadata, files, footers };
        Ok(Self { inner: Arc::new(inner), cache: None })
    }

    /// Where the dataset is.
    pub fn uri(&self) -> &str {
        self.inner.location.url.as_str()
    }

    /// The table's version this handle shows.
    pub fn version(&self) -> u64 {
        self.inner.snapshot.version()
    }

    /// Levels, dtype, autoencoder, preprocessing and classes.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// Rows in all committed shards.
    pub fn rows(&self) -> u64 {
        self.shards().map(ShardSummary::rows).sum()
    }

    /// Bytes of all data files.
    pub fn bytes(&self) -> u64 {
        self.inner.files.iter().map(|file| file.size).sum()
    }

    /// Bytes that reading `levels` alone takes: their segments and the small columns.
    pub fn bytes_of(&self, levels: &[usize]) -> u64 {
        let segments = || std::iter::once(0).chain(levels.iter().map(|level| level + 1));
        let size = |shard: &ShardSummary, group: usize, segment: usize| {
            let range = shard.segment(group, segment);
            range.end - range.start
        };
        self.shards()
            .flat_map(|shard| (0..shard.row_groups.len()).map(move |group| (shard, group)))
            .flat_map(|(shard, group)| segments().map(move |segment| size(shard, group, segment)))
            .sum()
    }

    /// The committed shards, in the order of their names.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &ShardSummary> {
        self.inner.files.iter().map(|file| &file.summary)
    }

    /// Mean, standard deviation and range of every channel of the raw latents, from the sums in
    /// the log: no data file is read.
    pub fn statistics(&self) -> Statistics {
        let shards = self.shards().map(|shard| shard.levels.as_slice());
        Statistics::merge(&self.inner.metadata.levels, shards)
    }

    /// Whether `shard` is committed as of now, in the newest version.
    pub async fn is_committed(&self, shard: &str) -> Result<bool> {
        let (table, shard) = (self.inner.table.clone(), shard.to_string());
        blocking(move || table.is_committed(&table.snapshot(None)?, &shard)).await
    }

    /// Begins writing `shard` in the default layout.
    ///
    /// # Errors
    /// [`StoreError::Config`] where the name is not 1 to 64 letters, digits, `-`, `_`, `.`.
    pub async fn shard(&self, shard: &str) -> Result<ShardWriter> {
        self.shard_with(shard, ShardOptions::default()).await
    }

    /// Begins writing `shard` in the given layout.
    pub async fn shard_with(&self, shard: &str, options: ShardOptions) -> Result<ShardWriter> {
        ShardWriter::new(self.clone(), shard, options)
    }

    pub(crate) fn cache(&self) -> Option<&Arc<DiskCache>> {
        self.cache.as_ref()
    }

    pub(crate) fn location(&self) -> &Location {
        &self.inner.location
    }

    pub(crate) fn table(&self) -> &Table {
        &self.inner.table
    }

    pub(crate) fn files(&self) -> &[DataFile] {
        &self.inner.files
    }

    pub(crate) fn footers(&self) -> &Footers {
        &self.inner.footers
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Dataset")
            .field("uri", &self.uri())
            .field("version", &self.version())
            .field("shards", &self.inner.files.len())
            .finish()
    }
}

fn read_metadata(uri: &str, properties: &HashMap<String, String>) -> Result<Metadata> {
    let unusable = |reason: String| StoreError::Metadata { uri: uri.to_string(), reason };
    let property = |key: &str| {
        properties.get(key).ok_or_else(|| unusable(format!("table property '{key}' is missing")))
    };
    let found: u32 = property(VERSION_PROPERTY)?
        .parse()
        .map_err(|error| unusable(format!("{VERSION_PROPERTY}: {error}")))?;
    if found > FORMAT_VERSION {
        let supported = FORMAT_VERSION;
        return Err(StoreError::FormatVersion { uri: uri.to_string(), found, supported });
    }
    let metadata: Metadata = serde_json::from_str(property(METADATA_PROPERTY)?)
        .map_err(|error| unusable(format!("{METADATA_PROPERTY}: {error}")))?;
    metadata.validate().map_err(unusable)?;
    Ok(metadata)
}

/// Parsed footers by file.
#[derive(Default)]
pub(crate) struct Footers(Mutex<HashMap<String, Arc<ParquetMetaData>>>);

impl Footers {
    pub fn get(&self, path: &str) -> Option<Arc<ParquetMetaData>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    pub fn insert(&self, path: &str, footer: &Arc<ParquetMetaData>) {
        let mut footers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if footers.len() >= FOOTERS_MAX {
            footers.clear();
        }
        footers.insert(path.to_string(), Arc::clone(footer));
    }
}
