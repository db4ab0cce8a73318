//! The run folder: checkpoints by step, and `metrics.jsonl`.

use crate::error::{Result, TrainError};
use crate::metrics::Line;
use lapflow_model::checkpoint::Checkpoint;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder that holds one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The folder `root`, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let folder = Self { root: root.into() };
        fs::create_dir_all(folder.checkpoints()).map_err(TrainError::io(folder.checkpoints()))?;
        Ok(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Where the checkpoint of `step` is written.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:09}.safetensors"))
    }

    /// All complete checkpoints, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<PathBuf>> {
        let folder = self.checkpoints();
        let entries = fs::read_dir(&folder).map_err(TrainError::io(&folder))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(TrainError::io(&folder))?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// The newest checkpoint that can be read; unreadable ones are named in a warning.
    ///
    /// # Errors
    /// When there are checkpoints and none can be read.
    pub fn newest(&self) -> Result<Option<Checkpoint>> {
        let mut last_error = None;
        for path in self.list()?.iter().rev() {
            match Checkpoint::read(path) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => {
                    tracing::warn!("{error}; looking for an older checkpoint");
                    last_error = Some(error);
                }
            }
        }
        last_error.map_or(Ok(None), |error| Err(error.into()))
    }

    /// Removes all checkpoints but the newest `kept`.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self, kept: usize) -> Result<()> {
        let paths = self.list()?;
        for path in &paths[..paths.len().saturating_sub(kept)] {
            fs::remove_file(path).map_err(TrainError::io(path))?;
        }
        Ok(())
    }

    /// Drops the lines of `metrics.jsonl` that a run stopped after `step` steps has yet to write.
    ///
    /// # Errors
    /// When the file cannot be rewritten.
    pub fn rewind_metrics(&self, step: u64) -> Result<()> {
        let path = self.metrics();
        let lines: Vec<Line> = self.read_metrics()?;
        let kept = lines.iter().filter(|line| line.step <= step);
        let text: String = kept.map(Line::to_json).collect();
        let beside = path.with_extension("partial");
        fs::write(&beside, text).map_err(TrainError::io(&beside))?;
        fs::rename(&beside, &path).map_err(TrainError::io(&path))
    }

    /// The lines of `metrics.jsonl`; a last line cut short by a crash is left out.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read_metrics(&self) -> Result<Vec<Line>> {
        let path = self.metrics();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// `metrics.jsonl`, to append to.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn append_metrics(&self) -> Result<MetricsFile> {
        let path = self.metrics();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(MetricsFile { file: file.map_err(TrainError::io(&path))?, path })
    }
}

/// An open `metrics.jsonl`.
pub struct MetricsFile {
    file: File,
    path: PathBuf,
}

impl MetricsFile {
    /// Appends one line.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        self.file.write_all(line.to_json().as_bytes()).map_err(TrainError::io(&self.path))
    }
}
