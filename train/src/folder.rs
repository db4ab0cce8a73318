//! The run folder: checkpoints by step, and `metrics.jsonl`.

use crate::error::{Result, TrainError};
use crate::metrics::Line;
use lapflow_model::checkpoint::Checkpoint;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
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

    /// The folder `root` of a run that is there, to read from: nothing is made.
    pub fn of(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Claims the folder for this process until the lock is dropped or the process has ended, however
    /// it did.
    ///
    /// # Errors
    /// [`TrainError::Locked`] names the process that holds it.
    pub fn lock(&self) -> Result<Lock> {
        Lock::take(&self.root)
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

    /// The checkpoint with the lowest loss, where the run keeps it.
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join("best.safetensors")
    }

    /// Where event files for TensorBoard are.
    pub fn events(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Where the grid of samples of `step` is written.
    pub fn samples(&self, step: u64) -> PathBuf {
        self.root.join("samples").join(format!("step-{step:09}.png"))
    }

    /// All complete checkpoints by step, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<PathBuf>> {
        let folder = self.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(TrainError::io(&folder))?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(TrainError::io(&folder))?.path();
            if step_of(&path).is_some() {
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

    /// Removes all checkpoints but the newest `kept` and those of multiples of `keep_every`.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self, kept: usize, keep_every: u64) -> Result<()> {
        let paths = self.list()?;
        let stays = |step: u64| keep_every > 0 && step.is_multiple_of(keep_every);
        for path in &paths[..paths.len().saturating_sub(kept)] {
            if !step_of(path).is_some_and(stays) {
                fs::remove_file(path).map_err(TrainError::io(path))?;
            }
        }
        Ok(())
    }

    /// Makes `checkpoint` the best one: the same file under a second name, or a copy where the file
    /// system has no such links.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn mark_best(&self, checkpoint: &Path) -> Result<()> {
        let best = self.best();
        let beside = best.with_extension("partial");
        // What a crash may have left.
        let _ = fs::remove_file(&beside);
        fs::hard_link(checkpoint, &beside)
            .or_else(|_| fs::copy(checkpoint, &beside).map(|_| ()))
            .and_then(|()| fs::rename(&beside, &best))
            .map_err(TrainError::io(&best))
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
        write_whole(&path, text.as_bytes())
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

/// The step in the name of a checkpoint.
fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// The right to write into a folder, which one process has at a time.
///
/// The operating system gives it back when the process ends; the file that it is held by says whose
/// it is, and stays.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Claims `folder`, which must be there.
    ///
    /// # Errors
    /// [`TrainError::Locked`] names the process that holds it.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let mut file = file.map_err(TrainError::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path).unwrap_or_default().trim().to_string();
                return Err(TrainError::Locked { folder: folder.to_path_buf(), holder });
            }
            Err(TryLockError::Error(error)) => {
                tracing::warn!(
                    "{}: no lock to be had ({error}): two runs would not notice each other",
                    path.display()
                );
            }
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let holder = format!("process {} on {}\n", std::process::id(), host.trim());
        file.set_len(0)
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(TrainError::io(&path))?;
        Ok(Self { _file: file })
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

/// Writes a file beside `path` and renames it: whoever reads sees all of it or none.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("partial");
    fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path)).map_err(TrainError::io(path))
}
