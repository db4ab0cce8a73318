//! `lapflow autoencoder train`: a recipe in, weights with their config and scale out.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use lapflow_model::autoencoder::{
    CONFIG_KEY, KlConfig, KlNetwork, Losses, Transform, diffusers_names,
};
use lapflow_model::weights::Weights;
use lapflow_model::{Params, on_pool};
use lapflow_train::{Alone, Lock, Optimizer, TrainConfig};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::json;

use super::data::Images;
use super::recipe::Recipe;
use super::score::Score;
use crate::commands::Context;

/// The files of a run: the averaged weights, and everything that a resumed run needs.
const WEIGHTS: &str = "autoencoder.safetensors";
const STATE: &str = "state.safetensors";
/// Prefix of the network's parameters in the state.
const NETWORK: &str = "net.";

/// Arguments of `lapflow autoencoder train`.
#[derive(clap::Args, Debug)]
pub struct TrainArgs {
    /// TOML file with the sections data, architecture, objective and train
    config: PathBuf,
    /// Folder for weights, state and metrics.
    #[arg(long)]
    out: PathBuf,
    /// Continue the run in the folder.
    #[arg(long)]
    resume: bool,
}

/// Trains on the CPU, writing `autoencoder.safetensors` at every checkpoint.
pub fn train(args: &TrainArgs, context: &Context) -> Result<()> {
    let recipe = Recipe::read(&args.config)?;
    let (train, out) = (&recipe.train, &args.out);
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let _lock = Lock::take(out)?;
    let images =
        context.runtime.block_on(Images::open(&recipe.data, train.held_out, train.seed))?;
    let mut run = Run::open(out, &recipe, args.resume)?;
    write_text(&out.join("config.toml"), &toml::to_string(&recipe)?)?;
    let (mut since, mut started) = (run.step, Instant::now());
    while run.step < train.steps {
        let terms = run.advance(&recipe, &images)?;
        let stopped = context.stop.load(Ordering::Relaxed);
        let ends = stopped || run.step == train.steps;
        if ends || run.step.is_multiple_of(train.log_every) {
            let done = (run.step - since) * train.batch as u64;
            run.report(&terms, done as f64 / started.elapsed().as_secs_f64())?;
            (since, started) = (run.step, Instant::now());
        }
        if ends || run.step.is_multiple_of(train.checkpoint_every) {
            run.save(&recipe, &images)?;
        }
        if stopped && run.step < train.steps {
            bail!("stopped after step {}; --resume goes on from there", run.step);
        }
    }
    println!("{}", out.join(WEIGHTS).display());
    Ok(())
}

/// The losses of a step by name.
type Terms = BTreeMap<&'static str, f32>;

/// A training run in its folder.
struct Run {
    folder: PathBuf,
    network: KlNetwork,
    params: Params,
    optimizer: Optimizer,
    config: TrainConfig,
    step: u64,
}

impl Run {
    /// A fresh run, or the one in `folder` when `resume`.
    fn open(folder: &Path, recipe: &Recipe, resume: bool) -> Result<Self> {
        let state = folder.join(STATE);
        let state = if resume {
            Some(Weights::read(&state).context("no run to resume")?)
        } else {
            ensure!(
                !state.exists(),
                "{} holds a run: continue it with --resume or choose another --out",
                folder.display()
            );
            None
        };
        let build = |scope: &_| KlNetwork::new(scope, &recipe.architecture);
        let (device, dtype) = (Device::Cpu, DType::F32);
        let (network, params) = match (&state, &recipe.train.init) {
            (Some(state), _) => Params::load(group(state, NETWORK), dtype, &device, build)?,
            (None, Some(path)) => {
                let weights = initial(path, &recipe.architecture)?;
                Params::load(weights, dtype, &device, build)
                    .with_context(|| format!("train.init {}", path.display()))?
            }
            (None, None) => Params::init(recipe.train.seed, dtype, &device, build)?,
        };
        let config = recipe.optimizer();
        let mut optimizer = Optimizer::new(&params, &config)?;
        let mut step = 0;
        if let Some(state) = &state {
            optimizer.restore(&params, |name| group(state, &format!("{name}.")))?;
            step = state
                .metadata
                .get("step")
                .and_then(|step| step.parse().ok())
                .context("the state does not say its step")?;
        }
        Ok(Self { folder: folder.to_owned(), network, params, optimizer, config, step })
    }

    /// One optimiser step; everything drawn depends on the seed and the step alone.
    fn advance(&mut self, recipe: &Recipe, images: &Images) -> Result<Terms> {
        let train = &recipe.train;
        let mut rng = ChaCha8Rng::seed_from_u64(train.seed);
        rng.set_stream(self.step);
        let images = images.batch(self.step * train.batch as u64, train.batch)?;
        let (batch, _, height, width) = images.dims4()?;
        let KlConfig { latent_channels, .. } = recipe.architecture;
        let factor = recipe.architecture.factor();
        let shape = (batch, latent_channels, height / factor, width / factor);
        let transform = rng
            .random_bool(recipe.objective.equivariance)
            .then(|| Transform::draw(&mut rng, shape.2, shape.3));
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let noise: Vec<f32> = (0..count).map(|_| StandardNormal.sample(&mut rng)).collect();
        let noise = Tensor::from_vec(noise, shape, &Device::Cpu)?;

        let (losses, grads) = on_pool(&Device::Cpu, || {
            let losses =
                Losses::evaluate(&self.network, &images, &noise, transform, &recipe.objective)?;
            let grads = losses.total.backward()?;
            anyhow::Ok((losses, grads))
        })?;
        let grads: Vec<_> =
            self.params.iter().map(|(_, var)| grads.get(var.as_tensor()).cloned()).collect();
        self.optimizer.step(&self.params, &grads, &self.config, self.step, self.step, 1.0)?;
        self.step += 1;
        let terms = [
            ("loss", &losses.total),
            ("l1", &losses.l1),
            ("gradient", &losses.gradient),
            ("kl", &losses.kl),
        ];
        terms.into_iter().map(|(name, term)| Ok((name, term.to_scalar::<f32>()?))).collect()
    }

    fn report(&self, terms: &Terms, rate: f64) -> Result<()> {
        let values: Vec<_> =
            terms.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let (step, steps) = (self.step, self.config.steps);
        eprintln!("step {step}/{steps}  {}  {rate:.1} images/s", values.join("  "));
        self.append(&json!({ "step": step, "terms": terms, "images_per_s": rate }))
    }

    fn append(&self, line: &serde_json::Value) -> Result<()> {
        let path = self.folder.join("metrics.jsonl");
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes the state, and the averaged weights in f16 with the scale that normalises them.
    fn save(&self, recipe: &Recipe, images: &Images) -> Result<()> {
        let optimizer = self.optimizer.tensors(&self.params, &Alone, "")?;
        let average = optimizer.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix("ema.")?;
            Some(tensor.to_dtype(DType::F16).map(|tensor| (name.to_owned(), tensor)))
        });
        let average: BTreeMap<_, _> = average.collect::<candle_core::Result<_>>()?;
        let mut state: BTreeMap<_, _> = optimizer.iter().cloned().collect();
        for (name, var) in self.params.iter() {
            state.insert(format!("{NETWORK}{name}"), var.as_tensor().clone());
        }
        let step = BTreeMap::from([("step".to_owned(), self.step.to_string())]);
        Weights::write(self.folder.join(STATE), &state, &step)?;

        let path = self.folder.join(WEIGHTS);
        let mut config = recipe.architecture.clone();
        write_weights(&path, &average, &config)?;
        let score = Score::of_file(&path, &images.held_out()?)?;
        config.shift_factor = round(score.mean);
        config.scaling_factor = Some(round(score.std.recip()));
        write_weights(&path, &average, &config)?;
        let (step, held_out) = (self.step, recipe.train.held_out);
        eprintln!("step {step}/{}  {held_out} held-out images: {score}", self.config.steps);
        self.append(&json!({ "step": step, "held_out": score }))
    }
}

/// Weights to start from, whose own statement of the groups must be the recipe's.
fn initial(path: &Path, architecture: &KlConfig) -> Result<BTreeMap<String, Tensor>> {
    let weights = Weights::read(path)?;
    let groups = architecture.norm_num_groups;
    if let Some(stated) = KlConfig::stated(&weights)?.map(|stated| stated.norm_num_groups) {
        let name = path.display();
        ensure!(
            stated == groups,
            "train.init {name}: its groups are {stated}, architecture.norm_num_groups is {groups}"
        );
    }
    Ok(diffusers_names(weights.tensors)?)
}

fn write_weights(path: &Path, tensors: &BTreeMap<String, Tensor>, config: &KlConfig) -> Result<()> {
    let metadata = BTreeMap::from([(CONFIG_KEY.to_owned(), serde_json::to_string(config)?)]);
    Ok(Weights::write(path, tensors, &metadata)?)
}

/// The tensors of `state` whose names begin with `prefix`, without it.
fn group(state: &Weights, prefix: &str) -> BTreeMap<String, Tensor> {
    let named = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
    };
    state.tensors.iter().filter_map(named).collect()
}

/// To five decimals, so that the number in the header reads well.
fn round(value: f64) -> f64 {
    (value * 1e5).round() / 1e5
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
