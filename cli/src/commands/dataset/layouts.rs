//! Other projects' latents: REPA, LightningDiT and fast-DiT, both ways.
//!
//! - REPA: `NNNNN/img-mean-std-NNNNNNNN.npy` of `[2C, h, w]` (mean, then standard deviation) and
//!   `dataset.json` with labels.
//! - LightningDiT: `latents_rank00_shardNNN.safetensors` with `latents`, `latents_flip`, `labels`.
//! - fast-DiT: `imagenet256_features/N.npy` of `[1, C, h, w]`, drawn and scaled, and
//!   `imagenet256_labels/N.npy` of `[1]`.

use super::Context;
use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor, safetensors};
use futures::{TryStreamExt, pin_mut};
use lapflow_model::pyramid;
use lapflow_store::{Dataset, Dtype, LevelSpec, Metadata, Posterior, Row};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Rows of a LightningDiT file.
const LIGHTNING_ROWS: usize = 10_000;
/// Files of a REPA folder.
const REPA_FOLDER_FILES: i64 = 1000;
/// Rows of an imported shard.
const SHARD_ROWS: usize = 10_000;
const FAST_DIT_LATENTS: &str = "imagenet256_features";
const FAST_DIT_LABELS: &str = "imagenet256_labels";

/// Whose layout.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// Mean and standard deviation, an .npy each
    Repa,
    /// Safetensors with flips
    LightningDit,
    /// One draw, scaled, an .npy each
    FastDit,
}

/// Arguments of `lapflow dataset export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// Path or s3://, gs://, az:// address
    uri: String,
    /// Whose layout
    #[arg(long, value_enum)]
    layout: Layout,
    /// Folder to write
    #[arg(long)]
    out: PathBuf,
    /// What fast-DiT multiplies latents by
    #[arg(long, default_value_t = 0.18215)]
    scale: f64,
}

/// Arguments of `lapflow dataset import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// Path or s3://, gs://, az:// address of the dataset to make
    uri: String,
    /// Whose layout
    #[arg(long, value_enum)]
    layout: Layout,
    /// Folder to read
    #[arg(long)]
    from: PathBuf,
    /// Pyramid levels to store
    #[arg(long, default_value_t = 2)]
    levels: usize,
    /// What fast-DiT multiplied latents by
    #[arg(long, default_value_t = 0.18215)]
    scale: f64,
}

/// A sample as all layouts have it: raw latents `[C, h, w]` in f32.
struct Sample {
    id: i64,
    label: i32,
    view: i8,
    source: String,
    mean: Tensor,
    logvar: Option<Tensor>,
}

/// Runs `lapflow dataset export`.
pub fn export(args: &ExportArgs, context: &Context) -> Result<()> {
    fs::create_dir_all(&args.out).with_context(|| format!("making '{}'", args.out.display()))?;
    let count = context.runtime.block_on(async {
        let dataset = Dataset::open(&args.uri).await?;
        let mut writer = Exporter::new(args, dataset.metadata());
        let rows = dataset.scan();
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            writer.push(sample(&row, dataset.metadata())?)?;
        }
        writer.finish()
    })?;
    println!("{count} samples in {}", args.out.display());
    Ok(())
}

fn sample(row: &Row, metadata: &Metadata) -> Result<Sample> {
    let tensor = |bytes: &[u8], spec: &LevelSpec| {
        let shape = (1, spec.channels, spec.height, spec.width);
        Tensor::from_vec(metadata.dtype.decode(bytes), shape, &Device::Cpu)
    };
    let levels = row.levels.iter().zip(&metadata.levels).map(|(bytes, spec)| tensor(bytes, spec));
    let mean = pyramid::merge(&levels.collect::<candle_core::Result<Vec<_>>>()?)?.squeeze(0)?;
    let logvar = match &row.logvar {
        Some(bytes) => Some(tensor(bytes, &metadata.levels[0])?.squeeze(0)?),
        None => None,
    };
    let (id, label, view) = (row.id, row.label, row.view);
    Ok(Sample { id, label, view, source: row.source.clone(), mean, logvar })
}

struct Exporter<'a> {
    args: &'a ExportArgs,
    posterior: Posterior,
    count: i64,
    /// REPA's labels by file.
    labels: Vec<Value>,
    /// LightningDiT's samples by id: as they are and mirrored.
    pairs: BTreeMap<i64, (i32, [Option<Tensor>; 2])>,
    files: usize,
}

impl<'a> Exporter<'a> {
    fn new(args: &'a ExportArgs, metadata: &Metadata) -> Self {
        let posterior = metadata.posterior;
        Self { args, posterior, count: 0, labels: vec![], pairs: BTreeMap::new(), files: 0 }
    }

    fn push(&mut self, sample: Sample) -> Result<()> {
        match self.args.layout {
            Layout::Repa => self.repa(&sample)?,
            Layout::FastDit => self.fast_dit(&sample)?,
            Layout::LightningDit => {
                let (_, views) =
                    self.pairs.entry(sample.id).or_insert_with(|| (sample.label, [None, None]));
                views[usize::from(sample.view != 0)] = Some(sample.mean);
                let complete = self.pairs.values().filter(|(_, v)| v.iter().all(Option::is_some));
                if self.pairs.len() >= LIGHTNING_ROWS && complete.count() >= LIGHTNING_ROWS {
                    self.lightning(true)?;
                }
            }
        }
        self.count += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<i64> {
        match self.args.layout {
            Layout::Repa => {
                let labels = json!({ "labels": self.labels });
                fs::write(self.args.out.join("dataset.json"), labels.to_string())?;
            }
            Layout::LightningDit => self.lightning(false)?,
            Layout::FastDit => {}
        }
        Ok(self.count)
    }

    fn repa(&mut self, sample: &Sample) -> Result<()> {
        let Some(logvar) = &sample.logvar else {
            bail!(
                "REPA's layout needs a dataset of posterior moments, this one holds {:?}",
                self.posterior
            );
        };
        let std = (logvar * 0.5)?.exp()?;
        let folder = format!("{:05}", self.count / REPA_FOLDER_FILES);
        let name = format!("{folder}/img-mean-std-{:08}.npy", self.count);
        fs::create_dir_all(self.args.out.join(folder))?;
        Tensor::cat(&[&sample.mean, &std], 0)?.write_npy(self.args.out.join(&name))?;
        self.labels.push(json!([name, sample.label]));
        Ok(())
    }

    fn fast_dit(&mut self, sample: &Sample) -> Result<()> {
        let name = format!("{}.npy", self.count);
        let folders = [FAST_DIT_LATENTS, FAST_DIT_LABELS].map(|name| self.args.out.join(name));
        folders.iter().try_for_each(fs::create_dir_all)?;
        (&sample.mean * self.args.scale)?.unsqueeze(0)?.write_npy(folders[0].join(&name))?;
        let label = Tensor::from_vec(vec![i64::from(sample.label)], 1, &Device::Cpu)?;
        label.write_npy(folders[1].join(&name))?;
        Ok(())
    }

    /// Writes the pairs that are complete, or all of them, a missing view standing for the other.
    fn lightning(&mut self, complete_only: bool) -> Result<()> {
        let mut rows = Vec::new();
        let mut waiting = BTreeMap::new();
        for (id, (label, views)) in std::mem::take(&mut self.pairs) {
            match views {
                [Some(plain), Some(flip)] => rows.push((label, plain, flip)),
                views if complete_only => drop(waiting.insert(id, (label, views))),
                [Some(only), None] | [None, Some(only)] => rows.push((label, only.clone(), only)),
                [None, None] => {}
            }
        }
        self.pairs = waiting;
        for rows in rows.chunks(LIGHTNING_ROWS) {
            let stack = |pick: fn(&(i32, Tensor, Tensor)) -> &Tensor| {
                Tensor::stack(&rows.iter().map(pick).collect::<Vec<_>>(), 0)
            };
            let labels: Vec<i64> = rows.iter().map(|row| i64::from(row.0)).collect();
            let tensors = HashMap::from([
                ("latents", stack(|row| &row.1)?),
                ("latents_flip", stack(|row| &row.2)?),
                ("labels", Tensor::from_vec(labels, rows.len(), &Device::Cpu)?),
            ]);
            let name = format!("latents_rank00_shard{:03}.safetensors", self.files);
            safetensors::save(&tensors, self.args.out.join(name))?;
            self.files += 1;
        }
        Ok(())
    }
}

/// Runs `lapflow dataset import`.
pub fn import(args: &ImportArgs, context: &Context) -> Result<()> {
    let count = context.runtime.block_on(async {
        let mut samples = match args.layout {
            Layout::Repa => read_repa(&args.from)?,
            Layout::FastDit => read_fast_dit(&args.from, args.scale)?,
            Layout::LightningDit => read_lightning(&args.from)?,
        }
        .peekable();
        let first = match samples.peek() {
            Some(Ok(first)) => first,
            Some(Err(_)) => return samples.next().map_or(Ok(0), |first| first.map(|_| 0)),
            None => bail!("'{}' holds no latents in this layout", args.from.display()),
        };
        let dataset = Dataset::create(&args.uri, &import_metadata(first, args)?).await?;
        let mut count = 0;
        for shard in 0.. {
            if samples.peek().is_none() {
                break;
            }
            let mut writer = dataset.shard(&format!("{shard:05}")).await?;
            for sample in samples.by_ref().take(SHARD_ROWS) {
                writer.push(row(&sample?, dataset.metadata())?).await?;
                count += 1;
            }
            writer.commit().await?;
        }
        anyhow::Ok(count)
    })?;
    println!("{count} samples in {}", args.uri);
    Ok(())
}

fn import_metadata(first: &Sample, args: &ImportArgs) -> Result<Metadata> {
    let spec = |level: &Tensor| {
        let (_, channels, height, width) = level.dims4()?;
        anyhow::Ok(LevelSpec { channels, height, width })
    };
    let levels = pyramid::split(&first.mean.unsqueeze(0)?, args.levels)?;
    let levels = levels.iter().map(spec).collect::<Result<_>>()?;
    let (posterior, layout) = match args.layout {
        Layout::Repa => (Posterior::Moments, "repa"),
        Layout::FastDit => (Posterior::Sample, "fast-dit"),
        Layout::LightningDit => (Posterior::Sample, "lightning-dit"),
    };
    let mut metadata = Metadata::new(levels, Dtype::F32, posterior);
    metadata.preprocessing = json!({ "imported": layout });
    Ok(metadata)
}

fn row(sample: &Sample, metadata: &Metadata) -> Result<Row> {
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let encode = |tensor: &Tensor| anyhow::Ok(metadata.dtype.encode(&values(tensor)?));
    let levels = pyramid::split(&sample.mean.unsqueeze(0)?, metadata.levels.len())?;
    Ok(Row {
        id: sample.id,
        label: sample.label,
        source: sample.source.clone(),
        // The image's own bytes and size are not known here.
        sha256: [0; 32],
        width: 0,
        height: 0,
        view: sample.view,
        levels: levels.iter().map(encode).collect::<Result<_>>()?,
        logvar: sample.logvar.as_ref().map(encode).transpose()?,
    })
}

type Samples = Box<dyn Iterator<Item = Result<Sample>> + Send>;

fn read_repa(folder: &Path) -> Result<Samples> {
    let path = folder.join("dataset.json");
    let text = fs::read(&path).with_context(|| format!("reading '{}'", path.display()))?;
    let listing: Value = serde_json::from_slice(&text)?;
    let labels = listing["labels"].as_array().cloned().context("dataset.json has no labels")?;
    let folder = folder.to_path_buf();
    Ok(Box::new(labels.into_iter().enumerate().map(move |(id, entry)| {
        let name = entry[0].as_str().context("an entry of dataset.json has no file")?;
        let both = read_npy(&folder.join(name))?;
        let channels = both.dim(0)? / 2;
        let std = both.narrow(0, channels, channels)?;
        Ok(Sample {
            id: id as i64,
            label: entry[1].as_i64().unwrap_or(-1) as i32,
            view: 0,
            source: name.to_string(),
            mean: both.narrow(0, 0, channels)?,
            logvar: Some((std.clamp(f32::MIN_POSITIVE, f32::MAX)?.log()? * 2.0)?),
        })
    })))
}

fn read_fast_dit(folder: &Path, scale: f64) -> Result<Samples> {
    let (latents, labels) = (folder.join(FAST_DIT_LATENTS), folder.join(FAST_DIT_LABELS));
    let file = |folder: &Path, id: i64| folder.join(format!("{id}.npy"));
    let count = (0..).take_while(|&id| file(&latents, id).exists()).count() as i64;
    Ok(Box::new((0..count).map(move |id| {
        let path = file(&latents, id);
        let labels = read_npy(&file(&labels, id))?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Sample {
            id,
            label: labels.first().map_or(-1, |&label| label as i32),
            view: 0,
            source: path.display().to_string(),
            mean: (read_npy(&path)?.squeeze(0)? / scale)?,
            logvar: None,
        })
    })))
}

fn read_lightning(folder: &Path) -> Result<Samples> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("reading '{}'", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    let mut first = 0;
    Ok(Box::new(files.into_iter().flat_map(move |path| match lightning_file(&path, first) {
        Ok(samples) => {
            first += samples.len() as i64 / 2;
            samples.into_iter().map(Ok).collect::<Vec<_>>()
        }
        Err(error) => vec![Err(error)],
    })))
}

/// Both views of every sample of a file; ids go up from `first`.
fn lightning_file(path: &Path, first: i64) -> Result<Vec<Sample>> {
    let tensors = safetensors::load(path, &Device::Cpu)
        .with_context(|| format!("reading '{}'", path.display()))?;
    let tensor = |name: &str| {
        tensors.get(name).with_context(|| format!("'{}' has no '{name}'", path.display()))
    };
    let labels: Vec<i64> = tensor("labels")?.to_dtype(DType::I64)?.to_vec1()?;
    let mut samples = Vec::with_capacity(2 * labels.len());
    for (index, &label) in labels.iter().enumerate() {
        for (view, name) in ["latents", "latents_flip"].into_iter().enumerate() {
            samples.push(Sample {
                id: first + index as i64,
                label: label as i32,
                view: view as i8,
                source: format!("{}:{index}", path.display()),
                mean: tensor(name)?.get(index)?.to_dtype(DType::F32)?,
                logvar: None,
            });
        }
    }
    Ok(samples)
}

fn read_npy(path: &Path) -> Result<Tensor> {
    let tensor = Tensor::read_npy(path).with_context(|| format!("reading '{}'", path.display()))?;
    Ok(tensor.to_dtype(DType::F32)?)
}
