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
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use lapflow_model::pyramid;
use lapflow_store::{Dataset, Dtype, LevelSpec, Metadata, Posterior, Row, StoreError};
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
    /// The classes that labels count: how many, or a file of their names, one a line
    #[arg(long, value_name = "N|FILE")]
    classes: Option<String>,
    /// Weights of the autoencoder that made the latents: a file, encoder and decoder, or `builtin`
    #[arg(long, num_args = 1..=2, value_name = "WEIGHTS")]
    autoencoder: Vec<PathBuf>,
    /// Its scale, where its weights do not state it: a model sees (latents - shift) * scale
    #[arg(long, requires = "autoencoder")]
    autoencoder_scale: Option<f64>,
    /// Its shift, likewise
    #[arg(long, requires = "autoencoder")]
    autoencoder_shift: Option<f64>,
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
        let metadata = import_metadata(first, args, context)?;
        let dataset = match Dataset::create(&args.uri, &metadata).await {
            Err(StoreError::Exists { .. }) => Dataset::open(&args.uri).await?,
            created => created?,
        };
        if *dataset.metadata() != metadata {
            bail!("'{}' holds a dataset already, of other latents than these", args.uri);
        }
        let (mut count, mut unnamed) = (0, None);
        for shard in 0.. {
            if samples.peek().is_none() {
                break;
            }
            // What an import that was interrupted had committed stays.
            let name = format!("{shard:05}");
            let is_there = dataset.is_committed(&name).await?;
            let mut writer = dataset.shard(&name).await?;
            for sample in samples.by_ref().take(SHARD_ROWS) {
                let sample = sample?;
                unnamed = unnamed.max(check_label(&sample, &metadata)?);
                if !is_there {
                    writer.push(row(&sample, &metadata)?).await?;
                }
                count += 1;
            }
            if !is_there {
                writer.commit().await?;
            }
        }
        if let Some(label) = unnamed {
            eprintln!(
                "import: labels go up to {label} and the dataset has no classes: import again, with \
                 --classes {}, into another place to train on them",
                label + 1
            );
        }
        anyhow::Ok(count)
    })?;
    println!("{count} samples in {}", args.uri);
    Ok(())
}

/// Refuses a label beyond the classes; gives back one of a dataset without classes.
fn check_label(sample: &Sample, metadata: &Metadata) -> Result<Option<i32>> {
    let (label, classes) = (sample.label, metadata.classes.len());
    if label < 0 || classes == 0 {
        return Ok((label >= 0).then_some(label));
    }
    if label as usize >= classes {
        bail!("{}: label {label} is beyond the {classes} classes of --classes", sample.source);
    }
    Ok(None)
}

/// The names of `--classes`: a file's lines, or numbers.
fn class_names(given: Option<&str>) -> Result<Vec<String>> {
    let Some(given) = given else { return Ok(Vec::new()) };
    if let Ok(count) = given.parse::<usize>() {
        return Ok((0..count).map(|class| class.to_string()).collect());
    }
    let text = fs::read_to_string(given).with_context(|| format!("--classes {given}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.lines().map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).collect())
}

fn import_metadata(first: &Sample, args: &ImportArgs, context: &Context) -> Result<Metadata> {
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
    metadata.classes = class_names(args.classes.as_deref())?;
    if let Some(weights) = WeightsSource::from_paths(&args.autoencoder) {
        let (scale, shift) = (args.autoencoder_scale, args.autoencoder_shift);
        let config = AutoencoderConfig { weights, scale, shift, ..AutoencoderConfig::default() };
        let autoencoder = Autoencoder::open(&config, &context.device)?;
        let identity = autoencoder.identity();
        let (has, makes) = (metadata.levels[0].channels, identity.channels);
        if has != makes {
            bail!("--autoencoder makes latents of {makes} channels, these have {has}");
        }
        identity.normalization()?;
        metadata.autoencoder = serde_json::to_value(identity)?;
    }
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
    let listing: Value =
        serde_json::from_slice(&text).with_context(|| format!("'{}'", path.display()))?;
    let labels = listing["labels"]
        .as_array()
        .cloned()
        .with_context(|| format!("'{}' lists no `labels`", path.display()))?;
    let folder = folder.to_path_buf();
    Ok(Box::new(labels.into_iter().enumerate().map(move |(id, entry)| {
        let name = entry[0]
            .as_str()
            .with_context(|| format!("{}: label {id} names no file", path.display()))?;
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
    let (latents, labels) = fast_dit_folders(folder)?;
    let file = |folder: &Path, id: i64| folder.join(format!("{id}.npy"));
    let mut ids: Vec<i64> = fs::read_dir(&latents)
        .with_context(|| format!("reading '{}'", latents.display()))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".npy")?.parse().ok())
        .collect();
    ids.sort_unstable();
    let count = ids.len() as i64;
    if let Some(missing) = (0..count).find(|&id| ids[id as usize] != id) {
        let last = ids[ids.len() - 1];
        bail!("'{}' is missing, and {last}.npy is there", file(&latents, missing).display());
    }
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

/// Where fast-DiT's latents and labels are, for images of whatever size.
fn fast_dit_folders(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("reading '{}'", folder.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_latents = |name: &String| name.starts_with("imagenet") && name.ends_with("_features");
    let mut found: Vec<String> = names.filter(is_latents).collect();
    found.sort();
    match found.as_slice() {
        [] => bail!("'{}' holds no folder {FAST_DIT_LATENTS}", folder.display()),
        [latents] => {
            let labels = latents.replace("_features", "_labels");
            Ok((folder.join(latents), folder.join(labels)))
        }
        several => bail!("'{}' holds {}: import one", folder.display(), several.join(" and ")),
    }
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
