//! Batch jobs: image sets drawn in shards, resumed from what is on disk.
//!
//! Enters: a [`Generator`] and a [`Job`]. Leaves: one PNG an image, written beside and renamed, in
//! the set's folder; for `.npz` and Parquet the folder is a stage beside the file, from which the
//! job that finds it complete makes the file. Nothing else is state: a killed job loses the
//! batches in flight, and shards need not know of each other.

mod assemble;
mod labels;
mod record;

pub use labels::Labels;

use crate::error::{Result, SampleError};
use crate::generator::{Generator, Request};
use crate::images::Compression;
use crate::images::npy::{Element, Header};
use crate::images::png::write_png;
use crate::images::{Partial, RECORD};
use crate::segments::SegmentCost;
use candle_core::Tensor;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

/// Batches of latents that wait for the decoder.
const QUEUE_BATCHES_MAX: usize = 1;

/// Endings of files that a set is not written as, so that no folder is made of such a name.
const OTHER_FILES: [&str; 14] = [
    "zip",
    "tar",
    "gz",
    "png",
    "jpg",
    "jpeg",
    "webp",
    "gif",
    "npy",
    "pt",
    "pth",
    "safetensors",
    "h5",
    "csv",
];

/// A set of images to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Images in the whole set.
    pub count: u64,
    /// This worker and how many there are: it draws images `index`, `index + workers`, ..
    pub shard: (u64, u64),
    /// Their classes.
    pub labels: Labels,
    /// Where they go.
    pub output: Output,
}

/// The form of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// `000000.png` and so on in a folder.
    Folder(PathBuf),
    /// ADM's `.npz`.
    Npz(PathBuf, Compression),
    /// Rows of id, label, seed and PNG bytes.
    Parquet(PathBuf),
    /// An `.npz` of latents, not decoded: `arr_0` f32 (N, C, h, w) in the autoencoder's own units, as
    /// datasets store them.
    Latents(PathBuf),
}

/// How far a job is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Images of this shard that were there at the start.
    pub found: u64,
    /// Images drawn since.
    pub drawn: u64,
    /// Images of this shard.
    pub total: u64,
    /// Seconds since the start.
    pub seconds: f64,
    /// The cost of each level's segment, summed over the drawn images.
    pub costs: Vec<LevelCost>,
    /// Whether the set is complete and in its final form.
    pub complete: bool,
}

/// What the drawn images cost while one level was the finest active one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelCost {
    /// The finest active level.
    pub level: usize,
    /// Function evaluations: guided or not, a velocity counts once.
    pub evaluations: usize,
    /// Passes of the network: the velocities, and guidance's null halves.
    pub passes: usize,
}

impl Output {
    /// `DIR`, `FILE.npz` or `FILE.parquet`, by its ending in any case.
    ///
    /// # Errors
    /// For an ending of files of other kinds.
    pub fn from_path(path: &Path, compression: Compression) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        match ending.as_deref() {
            Some("npz") => Ok(Self::Npz(path.into(), compression)),
            Some("parquet") => Ok(Self::Parquet(path.into())),
            Some(other) if OTHER_FILES.contains(&other) => {
                let reason = "sets are folders, .npz or .parquet files";
                Err(SampleError::file(path, reason))
            }
            _ => Ok(Self::Folder(path.into())),
        }
    }

    /// The set itself.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Npz(path, _) | Self::Parquet(path) | Self::Latents(path) => {
                path
            }
        }
    }

    /// The folder of its PNG files.
    fn folder(&self) -> PathBuf {
        match self {
            Self::Folder(path) => path.clone(),
            _ => beside(self.path(), ".parts"),
        }
    }

    /// The file that says what the set is of.
    fn record(&self) -> PathBuf {
        match self {
            Self::Folder(path) => path.join(RECORD),
            _ => beside(self.path(), ".json"),
        }
    }

    /// The file of one image, in `folder`.
    fn part(&self, folder: &Path, index: u64) -> PathBuf {
        let ending = if matches!(self, Self::Latents(_)) { "npy" } else { "png" };
        folder.join(format!("{index:06}.{ending}"))
    }

    /// Refuses a folder that holds anything before this job has begun in it.
    fn check_own(&self) -> Result<()> {
        let folder = self.folder();
        let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(()) };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        // Looked for last: another worker of this job may have begun meanwhile.
        let Some(first) = names.first().filter(|_| !self.record().exists()) else { return Ok(()) };
        let (count, record) = (names.len(), self.record());
        let reason = format!(
            "holds {count} files that are not of this job ({first}, ..) and no {}: name an empty \
             folder",
            record.file_name().unwrap_or_default().display()
        );
        Err(SampleError::file(folder, reason))
    }

    fn is_finished(&self) -> bool {
        !matches!(self, Self::Folder(_)) && self.path().exists()
    }
}

impl Job {
    /// Draws what is missing of this worker's shard, and assembles the set if that completes it.
    ///
    /// `origin` names the weights, e.g. the checkpoint's hash. Decoding and writing of one batch
    /// overlap the integration of the next. A raised `stop` ends the job after the batches in
    /// flight; running the same job again continues it.
    ///
    /// # Errors
    /// When the place holds another set, the shard is out of range, or drawing or writing fails.
    pub fn run(
        &self,
        generator: &Generator,
        origin: &Value,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Progress> {
        let (worker, workers) = self.shard;
        if worker >= workers {
            return Err(SampleError::setting("shard", format!("{worker} is not below {workers}")));
        }
        let record = self.output.record();
        if self.output.is_finished() && !record.exists() {
            return Err(SampleError::file(self.output.path(), "exists and is not of this job"));
        }
        self.output.check_own()?;
        record::claim(&record, &self.record(generator, origin)?)?;
        let begin = Instant::now();
        let total = (worker..self.count).step_by(workers as usize).count() as u64;
        let mut state = Progress { total, ..Progress::default() };
        if self.output.is_finished() {
            state.found = state.total;
            state.complete = true;
            return Ok(state);
        }
        let folder = self.output.folder();
        let missing: Vec<Request> = (worker..self.count)
            .step_by(workers as usize)
            .filter(|index| !self.output.part(&folder, *index).exists())
            .map(|index| self.request(generator, index))
            .collect();
        state.found = state.total - missing.len() as u64;
        draw(generator, &missing, &self.output, stop, &mut |count, costs| {
            state.drawn += count;
            state.seconds = begin.elapsed().as_secs_f64();
            state.add(costs);
            progress(&state);
        })?;
        state.complete = assemble::if_complete(self, generator, &folder)?;
        state.seconds = begin.elapsed().as_secs_f64();
        Ok(state)
    }

    fn request(&self, generator: &Generator, index: u64) -> Request {
        let classes = generator.card().geometry.classes;
        Request { index, label: self.labels.label(generator.config().seed, index, classes) }
    }

    /// Everything that decides what the images are.
    fn record(&self, generator: &Generator, origin: &Value) -> Result<Value> {
        let mut sample = json!(generator.config());
        if let Some(settings) = sample.as_object_mut() {
            settings.remove("batch"); // an image does not depend on it
        }
        let mut record = json!({
            "lapflow": env!("CARGO_PKG_VERSION"), "count": self.count, "labels": self.labels,
            "sample": sample, "checkpoint": generator.card(), "origin": origin,
        });
        if matches!(self.output, Output::Latents(_)) {
            record["latents"] = json!(true);
        }
        Ok(record)
    }
}

impl Progress {
    fn add(&mut self, costs: &[SegmentCost]) {
        for cost in costs {
            let level = cost.segment.level;
            let evaluations: usize = cost.evaluations.iter().sum();
            let passes = evaluations + cost.null_passes.iter().sum::<usize>();
            match self.costs.iter_mut().find(|known| known.level == level) {
                Some(known) => {
                    known.evaluations += evaluations;
                    known.passes += passes;
                }
                None => self.costs.push(LevelCost { level, evaluations, passes }),
            }
        }
    }

    /// Function evaluations a drawn image, as the field counts them: a guided velocity is one.
    pub fn nfe(&self) -> f64 {
        let total: usize = self.costs.iter().map(|cost| cost.evaluations).sum();
        total as f64 / self.drawn.max(1) as f64
    }

    /// Passes of the network a drawn image, guidance's null halves included.
    pub fn passes(&self) -> f64 {
        let total: usize = self.costs.iter().map(|cost| cost.passes).sum();
        total as f64 / self.drawn.max(1) as f64
    }
}

/// A batch on its way from the solver to the decoder.
type Latents<'a> = (&'a [Request], Tensor, Vec<SegmentCost>);

/// Draws `requests` in batches; a second thread decodes and writes. A GPU's passes of the network are recorded
/// in the first batch, while that thread has nothing to do.
fn draw(
    generator: &Generator,
    requests: &[Request],
    output: &Output,
    stop: &AtomicBool,
    written: &mut dyn FnMut(u64, &[SegmentCost]),
) -> Result<()> {
    std::thread::scope(|scope| {
        let (to_decoder, latents) = sync_channel::<Latents>(QUEUE_BATCHES_MAX);
        let (to_caller, costs) = sync_channel(requests.len().max(1));
        let decoder = scope.spawn(move || {
            write_all(generator, latents, output, |count, cost| {
                // The caller may have failed and gone; its own error is the one to report.
                let _ = to_caller.send((count, cost));
            })
        });
        let mut report = |(count, cost): (u64, Vec<SegmentCost>)| written(count, &cost);
        generator.recorder().start();
        for batch in requests.chunks(generator.config().batch) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (latents, cost) = generator.draw_latents(batch)?;
            generator.recorder().stop();
            if to_decoder.send((batch, latents, cost)).is_err() {
                break; // the decoder failed; its error follows
            }
            costs.try_iter().for_each(&mut report);
        }
        drop(to_decoder);
        costs.iter().for_each(&mut report);
        decoder.join().expect("the decoder does not panic")
    })
}

fn write_all(
    generator: &Generator,
    latents: Receiver<Latents>,
    output: &Output,
    mut written: impl FnMut(u64, Vec<SegmentCost>),
) -> Result<()> {
    let folder = output.folder();
    for (batch, latents, cost) in latents {
        if matches!(output, Output::Latents(_)) {
            let raw = generator.raw(&latents)?;
            for (i, request) in batch.iter().enumerate() {
                write_latent(&output.part(&folder, request.index), &raw.get(i)?)?;
            }
            written(batch.len() as u64, cost);
            continue;
        }
        let images = generator.decode(&latents)?;
        let (_, _, height, width) = images.dims4()?;
        for (request, pixels) in batch.iter().zip(generator.pixels(&images)?) {
            let path = output.part(&folder, request.index);
            write_png(&path, (width as u32, height as u32), &pixels)?;
        }
        written(batch.len() as u64, cost);
    }
    Ok(())
}

/// Writes a latent `(c, h, w)` as an f32 array.
fn write_latent(path: &Path, latent: &Tensor) -> Result<()> {
    let values: Vec<f32> = latent.flatten_all()?.to_vec1()?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let header = Header { element: Element::F32, shape: latent.dims().to_vec() };
    let mut file = Partial::create(path)?;
    header
        .write(&mut file)
        .and_then(|()| file.write_all(&bytes))
        .map_err(|e| SampleError::file(path, e))?;
    file.keep()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}
