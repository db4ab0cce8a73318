//! Checks a whole dataset against its log, and removes files the log does not name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt};

use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::location::{blocking, on_runtime};
use crate::metadata::Row;
use crate::scan::read_rows;
use crate::schema::payload_columns;
use crate::statistics::LevelSums;
use crate::table::DataFile;

/// Relative difference of sums that still counts as equal: decimal text may cost the last bit.
const SUM_TOLERANCE: f64 = 1e-12;
/// Object written and removed to learn the storage's own time.
const CLOCK_PROBE: &str = "_lapflow_clock";

/// What [`Dataset::verify`] found.
#[derive(Debug, Default)]
pub struct Verification {
    /// Rows read.
    pub rows: u64,
    /// Bytes of the data files.
    pub bytes: u64,
    /// Everything that is wrong, each naming its file and place.
    pub problems: Vec<StoreError>,
    /// Files beside the data files that the log does not name: harmless leftovers of writers
    /// that died.
    pub orphans: Vec<String>,
}

impl Dataset {
    /// Reads everything: checksums, file sizes, duplicate rows, labels, non-finite values and the
    /// sums behind the statistics. Problems are collected, not returned as errors.
    ///
    /// Memory: one row group, and 16 bytes a row for finding duplicates.
    pub async fn verify(&self) -> Result<Verification> {
        let mut found = Verification { bytes: self.bytes(), ..Verification::default() };
        let mut seen = HashSet::new();
        for file in 0..self.files().len() {
            if let Err(problem) = self.verify_size(file).await {
                found.problems.push(problem);
            }
            self.verify_shard(file, &mut seen, &mut found).await;
        }
        let orphans = self.orphans().await?;
        found.orphans =
            orphans.iter().map(|orphan| self.location().address(&orphan.location)).collect();
        Ok(found)
    }

    /// Shards that the log names and whose files are not there, or not of the size that they had.
    /// A look at the listing: nothing is read.
    ///
    /// # Errors
    /// [`StoreError::Storage`] where the files cannot be listed.
    pub async fn lost(&self) -> Result<Vec<String>> {
        let there: HashMap<_, _> =
            self.listed().await?.into_iter().map(|meta| (meta.location, meta.size)).collect();
        let is_lost =
            |file: &&DataFile| there.get(&self.location().path(&file.path)) != Some(&file.size);
        Ok(self.files().iter().filter(is_lost).map(|file| file.summary.shard.clone()).collect())
    }

    async fn verify_size(&self, file: usize) -> Result<()> {
        let file = &self.files()[file];
        let (store, path) = (Arc::clone(&self.location().store), self.location().path(&file.path));
        let meta = on_runtime(async move { store.head(&path).await })
            .await
            .map_err(|error| StoreError::storage("reading", &file.path, error))?;
        if meta.size != file.size {
            let reason = format!("{} bytes, the log says {}", meta.size, file.size);
            return Err(StoreError::corrupt(&file.path, "its end", reason));
        }
        Ok(())
    }

    async fn verify_shard(
        &self,
        file: usize,
        seen: &mut HashSet<(i64, i8)>,
        found: &mut Verification,
    ) {
        let data_file = &self.files()[file];
        let specs = &self.metadata().levels;
        let mut sums: Vec<_> = specs.iter().map(|spec| LevelSums::new(spec.channels)).collect();
        let mut complete = true;
        for group in 0..data_file.summary.row_groups.len() {
            let rows = match read_rows(self, file, group).await {
                Ok(rows) => rows,
                Err(problem) => {
                    found.problems.push(problem);
                    complete = false;
                    continue;
                }
            };
            found.rows += rows.len() as u64;
            for (index, row) in rows.iter().enumerate() {
                let mut problem = |reason: String| {
                    let place = format!("row group {group}, row {index} (id {})", row.id);
                    found.problems.push(StoreError::corrupt(&data_file.path, place, reason));
                };
                if !seen.insert((row.id, row.view)) {
                    problem("id and view occur more than once".to_string());
                }
                self.verify_row(row, &mut sums, &mut problem);
            }
        }
        let agree =
            sums.iter().zip(&data_file.summary.levels).all(|(sums, said)| agree(sums, said));
        if complete && !agree {
            let reason = "the sums of its levels are not those of its rows";
            found.problems.push(StoreError::corrupt(
                &data_file.path,
                "its entry in the log",
                reason,
            ));
        }
    }

    fn verify_row(&self, row: &Row, sums: &mut [LevelSums], problem: &mut impl FnMut(String)) {
        let metadata = self.metadata();
        let classes = metadata.classes.len();
        if row.label < -1 || (classes > 0 && row.label >= classes as i32) {
            problem(format!("label {} of {classes} classes", row.label));
        }
        let columns = payload_columns(metadata);
        for (index, payload) in row.levels.iter().chain(&row.logvar).enumerate() {
            let (name, spec) = &columns[index];
            let values = metadata.dtype.decode(payload);
            if payload.len() != spec.bytes(metadata.dtype) {
                problem(format!("{name} has {} bytes", payload.len()));
            } else if !values.iter().all(|value| value.is_finite()) {
                problem(format!("{name} holds a value that is not finite"));
            } else if let Some(sums) = sums.get_mut(index) {
                sums.add(&values);
            }
        }
    }

    /// Removes files under `data/` that no commit names and that are older than `age`, by the
    /// storage's own clock; returns their paths.
    ///
    /// `age` must exceed the time a writer may take from its first row to its commit.
    pub async fn vacuum(&self, age: Duration) -> Result<Vec<String>> {
        let newest = self.refresh().await?;
        let now = newest.storage_time().await?;
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let mut removed = Vec::new();
        for orphan in newest.orphans().await? {
            if now.saturating_sub(orphan.last_modified.timestamp_millis()) <= age {
                continue;
            }
            let (store, path) = (Arc::clone(&self.location().store), orphan.location.clone());
            on_runtime(async move { store.delete(&path).await })
                .await
                .map_err(|error| self.location().failed("deleting", &orphan.location, error))?;
            removed.push(self.location().address(&orphan.location));
        }
        removed.extend(newest.remove_partial_uploads(age).await?);
        Ok(removed)
    }

    async fn orphans(&self) -> Result<Vec<ObjectMeta>> {
        let path = |file: &DataFile| self.location().path(&file.path);
        let known: HashSet<_> = self.files().iter().map(path).collect();
        let listed = self.listed().await?;
        Ok(listed.into_iter().filter(|meta| !known.contains(&meta.location)).collect())
    }

    /// The files under `data/`.
    async fn listed(&self) -> Result<Vec<ObjectMeta>> {
        let location = self.location().clone();
        let folder = location.path("data");
        let listed: std::result::Result<Vec<_>, _> = on_runtime({
            let folder = folder.clone();
            async move { location.store.list(Some(&folder)).try_collect().await }
        })
        .await;
        listed.map_err(|error| self.location().failed("listing", &folder, error))
    }

    /// The storage's time in milliseconds since 1970: this machine's clock may be wrong.
    async fn storage_time(&self) -> Result<i64> {
        let path = self.location().path(CLOCK_PROBE);
        let (store, probe) = (Arc::clone(&self.location().store), path.clone());
        let meta = on_runtime(async move {
            store.put(&probe, bytes::Bytes::new().into()).await?;
            let meta = store.head(&probe).await?;
            store.delete(&probe).await?;
            Ok(meta)
        });
        let meta: object_store::ObjectMeta =
            meta.await.map_err(|error| self.location().failed("writing", &path, error))?;
        Ok(meta.last_modified.timestamp_millis())
    }

    /// On a file system, removes unfinished uploads (`NAME.parquet#N`) of writers that died; the
    /// object store does not list them.
    async fn remove_partial_uploads(&self, age_ms: i64) -> Result<Vec<String>> {
        let Ok(root) = self.location().url.to_file_path() else { return Ok(Vec::new()) };
        blocking(move || {
            let folder = root.join("data");
            let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
            let mut removed = Vec::new();
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let old = entry
                    .metadata()
                    .and_then(|meta| meta.modified())
                    .is_ok_and(|time| time.elapsed().is_ok_and(|t| t.as_millis() as i64 > age_ms));
                if old && name.contains(".parquet#") && std::fs::remove_file(entry.path()).is_ok() {
                    removed.push(entry.path().display().to_string());
                }
            }
            Ok(removed)
        })
        .await
    }
}

/// Whether recomputed sums are those of the commit.
fn agree(sums: &LevelSums, said: &LevelSums) -> bool {
    let close =
        |found: &[f64], said: &[f64], scale: &[f64]| {
            found.iter().zip(said).zip(scale).all(|((found, said), scale)| {
                (found - said).abs() <= SUM_TOLERANCE * scale.max(1.0)
            })
        };
    sums.count == said.count
        && close(&sums.sum, &said.sum, &sums.sum_squares)
        && close(&sums.sum_squares, &said.sum_squares, &sums.sum_squares)
        && sums.min == said.min
        && sums.max == said.max
}
