//! The Delta table beneath a dataset: the only file that speaks to `delta_kernel`.
//!
//! Everything here blocks; callers run it through [`crate::location::blocking`].

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, SchemaRef};
use delta_kernel::arrow::json::ReaderBuilder;
use delta_kernel::committer::FileSystemCommitter;
use delta_kernel::engine::arrow_conversion::TryFromArrow;
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::schema::StructType;
use delta_kernel::transaction::{CommitResult, UpdateTableOperation, create_table::create_table};
use delta_kernel::{FileMeta, KernelError, Snapshot, SnapshotRef};
use delta_kernel_default_engine::executor::tokio::TokioMultiThreadExecutor;
use delta_kernel_default_engine::parquet::DataFileMetadata;
use delta_kernel_default_engine::{DefaultEngine, DefaultEngineBuilder, build_add_file_metadata};
use rand::RngExt;

use crate::error::{Result, StoreError};
use crate::location::{Location, RETRIES_MAX, retrying, runtime};
use crate::shard::{ShardSummary, transaction_id};

/// What commits name as their author.
const ENGINE_INFO: &str = concat!("lapflow/", env!("CARGO_PKG_VERSION"));
/// Table property that is drawn anew for each table.
pub(crate) const CREATION_PROPERTY: &str = "lapflow.creation";
/// Commits after which the log is condensed into a checkpoint.
const CHECKPOINT_COMMITS: u64 = 50;
/// Commits that may be lost to other writers in a row before giving up.
const COMMIT_ATTEMPTS_MAX: u32 = 100;
/// Longest wait between two attempts, in milliseconds.
const BACKOFF_MS_MAX: u64 = 500;

/// A data file the table's log names.
#[derive(Debug, Clone)]
pub(crate) struct DataFile {
    /// Path relative to the table's root.
    pub path: String,
    /// Size in bytes as committed.
    pub size: u64,
    /// What the shard's commit said.
    pub summary: ShardSummary,
}

impl DataFile {
    /// Whether `other` holds the same bytes, by their lengths and checksums.
    pub fn is_of_the_same_bytes(&self, other: &Self) -> bool {
        let (a, b) = (&self.summary, &other.summary);
        (self.size, a.footer_crc, &a.row_groups) == (other.size, b.footer_crc, &b.row_groups)
    }
}

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// This call committed the shard, as this version of the table.
    Done {
        /// The table's version that added the shard.
        version: u64,
    },
    /// The shard was in the table already; nothing was added.
    AlreadyDone,
    /// The shard was in the table already and its file was lost: this one, of the same bytes, is in
    /// its place.
    Restored,
}

/// A handle on a table's log.
#[derive(Clone)]
pub(crate) struct Table {
    location: Location,
    engine: Arc<DefaultEngine<TokioMultiThreadExecutor>>,
}

impl Table {
    pub fn new(location: Location) -> Self {
        let executor = Arc::new(TokioMultiThreadExecutor::new(runtime().clone()));
        let store = Arc::clone(&location.store);
        let engine = DefaultEngineBuilder::new(store).with_task_executor(executor).build();
        Self { location, engine: Arc::new(engine) }
    }

    /// Writes version 0: the schema and `properties`.
    pub fn create(&self, schema: &SchemaRef, properties: Vec<(String, String)>) -> Result<()> {
        if self.log_exists()? {
            return Err(StoreError::Exists { uri: self.location.url.to_string() });
        }
        if let Ok(folder) = self.location.url.to_file_path() {
            std::fs::create_dir_all(&folder).map_err(|error| StoreError::Address {
                uri: self.location.url.to_string(),
                reason: format!("the folder cannot be created: {error}"),
            })?;
        }
        let schema = StructType::try_from_arrow(schema.as_ref())
            .map_err(|error| self.log_text(error.to_string()))?;
        let transaction =
            create_table(self.location.url.as_str(), Arc::new(schema), ENGINE_INFO, false)
                .with_table_properties(properties)
                .build(self.engine.as_ref(), Box::new(FileSystemCommitter::new()))
                .map_err(|error| match self.log_exists() {
                    // Another creator came first since the look above.
                    Ok(true) => StoreError::Exists { uri: self.location.url.to_string() },
                    _ => self.log_error(error),
                })?;
        match transaction.commit(self.engine.as_ref()).map_err(|error| self.log_error(error))? {
            CommitResult::Committed(_) => Ok(()),
            CommitResult::Conflicted(_) => {
                Err(StoreError::Exists { uri: self.location.url.to_string() })
            }
            CommitResult::Retryable(retry) => Err(self.log_error(retry.error)),
        }
    }

    /// The table at `version`, or as it is now.
    pub fn snapshot(&self, version: Option<u64>) -> Result<SnapshotRef> {
        let mut builder = Snapshot::builder_for(self.location.url.as_str());
        if let Some(version) = version {
            builder = builder.at_version(version);
        }
        builder.build(self.engine.as_ref()).map_err(|error| match self.log_exists() {
            Ok(false) => StoreError::Missing {
                uri: self.location.url.to_string(),
                reason: "there is no table log".to_string(),
            },
            _ => self.log_error(error),
        })
    }

    /// Whether the shard's transaction is in `snapshot`.
    pub fn is_committed(&self, snapshot: &SnapshotRef, shard: &str) -> Result<bool> {
        snapshot
            .get_app_id_version(&transaction_id(shard), self.engine.as_ref())
            .map(|version| version.is_some())
            .map_err(|error| self.log_error(error))
    }

    /// The data files of `snapshot`, in the order of their shards' names.
    pub fn files(&self, snapshot: &SnapshotRef) -> Result<Vec<DataFile>> {
        let fail = |error| self.log_error(error);
        let scan = Arc::clone(snapshot).scan_builder().build().map_err(fail)?;
        let mut files = Vec::new();
        for batch in scan.scan_metadata(self.engine.as_ref()).map_err(fail)? {
            let selected =
                batch.map_err(fail)?.scan_files.apply_selection_vector().map_err(fail)?;
            let batch = ArrowEngineData::try_from_engine_data(selected).map_err(fail)?;
            self.read_files(batch.record_batch(), &mut files)?;
        }
        files.sort_by(|left, right| {
            (&left.summary.shard, &left.path).cmp(&(&right.summary.shard, &right.path))
        });
        Ok(files)
    }

    fn read_files(&self, batch: &RecordBatch, files: &mut Vec<DataFile>) -> Result<()> {
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| self.log_text(format!("no column '{name}'")))
        };
        let paths = column("path")?.as_string::<i32>();
        let sizes = column("size")?.as_primitive::<Int64Type>();
        let stats = column("stats")?.as_string::<i32>();
        for row in (0..batch.num_rows()).filter(|&row| paths.is_valid(row)) {
            let path = paths.value(row).to_string();
            let text = if stats.is_valid(row) { stats.value(row) } else { "{}" };
            let stats: FileStats = serde_json::from_str(text).map_err(|error| {
                self.log_text(format!("file '{path}' was not added by lapflow ({error})"))
            })?;
            let size = u64::try_from(sizes.value(row))
                .map_err(|_| self.log_text(format!("file '{path}' has a negative size")))?;
            files.push(DataFile { path, size, summary: stats.lapflow });
        }
        Ok(())
    }

    /// Adds `file` unless its shard's transaction is in the table already.
    ///
    /// Each attempt looks for the transaction in the newest version and then claims the next one
    /// with a conditional put, so among any number of writers exactly one succeeds. After an
    /// error of unknown outcome the next attempt's look finds what happened.
    ///
    /// `creation` is that of the table which the file was written for: one that was made anew since
    /// is another's.
    pub fn commit(
        &self,
        file: &DataFile,
        modified_ms: i64,
        creation: Option<&str>,
    ) -> Result<Commit> {
        let mut failures = 0;
        for attempt in 0..COMMIT_ATTEMPTS_MAX {
            match self.try_commit(file, modified_ms, creation, attempt > 0) {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(error @ StoreError::Replaced { .. }) => return Err(error),
                Err(error) if failures < RETRIES_MAX => {
                    failures += 1;
                    tracing::warn!(%error, shard = file.summary.shard, "commit failed, once more");
                }
                Err(error) => return Err(error),
            }
            let wait_max = (1 << attempt.min(10)).min(BACKOFF_MS_MAX);
            let wait_ms = rand::rng().random_range(0..=wait_max);
            std::thread::sleep(std::time::Duration::from_millis(wait_ms));
        }
        Err(StoreError::Contention {
            uri: self.location.url.to_string(),
            shard: file.summary.shard.clone(),
            attempts: COMMIT_ATTEMPTS_MAX,
        })
    }

    /// One attempt at [`Table::commit`]; `None` where another writer claimed the version first.
    fn try_commit(
        &self,
        file: &DataFile,
        modified_ms: i64,
        creation: Option<&str>,
        attempted: bool,
    ) -> Result<Option<Commit>> {
        let snapshot = self.snapshot(None)?;
        if creation_of(&snapshot) != creation {
            return Err(StoreError::Replaced { uri: self.location.url.to_string() });
        }
        if self.is_committed(&snapshot, &file.summary.shard)? {
            return self.whose(&snapshot, file, attempted).map(Some);
        }
        match self.attempt(snapshot, file, modified_ms).map_err(|error| self.log_error(error))? {
            CommitResult::Committed(committed) => {
                let version = committed.commit_version();
                if committed.post_commit_stats().commits_since_checkpoint >= CHECKPOINT_COMMITS {
                    self.checkpoint(committed.post_commit_snapshot());
                }
                Ok(Some(Commit::Done { version }))
            }
            CommitResult::Conflicted(_) => Ok(None),
            CommitResult::Retryable(retry) => Err(self.log_error(retry.error)),
        }
    }

    /// Whether the committed shard is this `file`. It may be, after any attempt: where the answer
    /// to a conditional put is lost, the store's own retry reports a conflict with itself.
    fn whose(&self, snapshot: &SnapshotRef, file: &DataFile, attempted: bool) -> Result<Commit> {
        let ours = attempted && self.files(snapshot)?.iter().any(|other| other.path == file.path);
        Ok(if ours { Commit::Done { version: snapshot.version() } } else { Commit::AlreadyDone })
    }

    fn attempt(
        &self,
        snapshot: SnapshotRef,
        file: &DataFile,
        modified_ms: i64,
    ) -> std::result::Result<CommitResult, KernelError> {
        let url = snapshot.table_root().join(&file.path)?;
        let mut transaction = snapshot
            .update_table(UpdateTableOperation::Write, ENGINE_INFO, true)
            .with_blind_append()
            .with_transaction_id(transaction_id(&file.summary.shard), 1)
            .build(self.engine.as_ref(), Box::new(FileSystemCommitter::new()))?;
        let context = transaction.write_state()?.write_context_builder().build()?;
        let meta = FileMeta::new(url, modified_ms, file.size);
        let stats = add_stats(&file.summary).map_err(KernelError::generic)?;
        let add = build_add_file_metadata(DataFileMetadata::new(meta, stats), &context)?;
        transaction.add_files(add);
        transaction.commit(self.engine.as_ref())
    }

    /// Condenses the log; a failure only costs speed, so it is logged and no more.
    fn checkpoint(&self, snapshot: Option<&SnapshotRef>) {
        let Some(snapshot) = snapshot else { return };
        let written = snapshot
            .checkpoint(self.engine.as_ref(), None)
            .and_then(|(_, snapshot)| snapshot.write_checksum(self.engine.as_ref()));
        if let Err(error) = written {
            tracing::warn!(table = %self.location.url, %error, "no checkpoint of the log written");
        }
    }

    fn log_exists(&self) -> Result<bool> {
        use futures::TryStreamExt;
        let prefix = self.location.path("_delta_log");
        let first = || async { self.location.store.list(Some(&prefix)).try_next().await };
        match runtime().block_on(retrying(first)) {
            Ok(entry) => Ok(entry.is_some()),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.location.failed("listing", &prefix, error)),
        }
    }

    fn log_error(&self, error: KernelError) -> StoreError {
        self.log_text(error.to_string().lines().next().unwrap_or_default().to_string())
    }

    fn log_text(&self, reason: String) -> StoreError {
        StoreError::Log { uri: self.location.url.to_string(), reason }
    }
}

/// What tells a table from one that was made in its place, where it says so.
pub(crate) fn creation_of(snapshot: &SnapshotRef) -> Option<&str> {
    snapshot.metadata_configuration().get(CREATION_PROPERTY).map(String::as_str)
}

/// The part of an Add action's `stats` that is ours.
#[derive(serde::Deserialize)]
struct FileStats {
    lapflow: ShardSummary,
}

/// The Add action's `stats` as the kernel takes them: a struct array that it writes as JSON.
fn add_stats(summary: &ShardSummary) -> std::result::Result<StructArray, String> {
    let list = |kind: DataType| DataType::List(Arc::new(Field::new("item", kind, false)));
    let group = fields([
        ("rows", DataType::Int64),
        ("ends", list(DataType::Int64)),
        ("crcs", list(DataType::Int64)),
    ]);
    let sums = fields([
        ("count", DataType::Int64),
        ("sum", list(DataType::Float64)),
        ("sumSquares", list(DataType::Float64)),
        ("min", list(DataType::Float32)),
        ("max", list(DataType::Float32)),
    ]);
    let ours = fields([
        ("shard", DataType::Utf8),
        ("rowGroups", list(DataType::Struct(group))),
        ("footerCrc", DataType::Int64),
        ("levels", list(DataType::Struct(sums))),
    ]);
    let schema = Arc::new(Schema::new(ours.clone()));
    let mut decoder = ReaderBuilder::new(schema).build_decoder().map_err(|e| e.to_string())?;
    decoder.serialize(&[summary]).map_err(|error| error.to_string())?;
    let batch = decoder.flush().map_err(|error| error.to_string())?.ok_or("no summary")?;
    let records = i64::try_from(summary.rows()).map_err(|error| error.to_string())?;
    let stats = fields([
        ("numRecords", DataType::Int64),
        ("tightBounds", DataType::Boolean),
        ("lapflow", DataType::Struct(ours)),
    ]);
    StructArray::try_new(
        stats,
        vec![
            Arc::new(Int64Array::from(vec![records])),
            Arc::new(BooleanArray::from(vec![true])),
            Arc::new(StructArray::from(batch)),
        ],
        None,
    )
    .map_err(|error| error.to_string())
}

fn fields<const N: usize>(columns: [(&str, DataType); N]) -> Fields {
    columns.into_iter().map(|(name, kind)| Field::new(name, kind, false)).collect()
}
