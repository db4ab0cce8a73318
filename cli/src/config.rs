//! The config file: one TOML of six sections, strict about unknown keys, over a preset.

use crate::presets::PRESETS;
use anyhow::{Context, Result, anyhow, bail};
use lapflow_encode::EncodeConfig;
use lapflow_ingest::IngestConfig;
use lapflow_model::autoencoder::AutoencoderConfig;
use lapflow_model::flow::FlowConfig;
use lapflow_model::net::ModelConfig;
use lapflow_sample::SampleConfig;
use lapflow_train::TrainConfig;
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Everything a job needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where images come from, how they are prepared and where the dataset is.
    pub data: DataConfig,
    /// What makes latents of them.
    pub autoencoder: AutoencoderConfig,
    /// The network.
    pub model: ModelConfig,
    /// Levels and paths.
    pub flow: FlowConfig,
    /// Training.
    pub train: TrainConfig,
    /// Sampling.
    pub sample: SampleConfig,
}

/// The `[data]` section: the dataset's URI, and the keys of ingest and encode side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// Where the dataset is written and read.
    pub dataset: String,
    /// From source to cropped images.
    pub ingest: IngestConfig,
    /// From images to shards.
    pub encode: EncodeConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            dataset: "runs/dataset".into(),
            ingest: IngestConfig::default(),
            encode: EncodeConfig::default(),
        }
    }
}

impl Serialize for DataConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let table = |value: Result<Table, _>| value.map_err(S::Error::custom);
        let mut all = Table::from_iter([("dataset".to_string(), self.dataset.clone().into())]);
        all.extend(table(Table::try_from(&self.ingest))?);
        all.extend(table(Table::try_from(&self.encode))?);
        all.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DataConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut ingest = Table::deserialize(deserializer)?;
        let dataset = match ingest.remove("dataset") {
            Some(Value::String(uri)) => uri,
            Some(_) => return Err(D::Error::custom("data.dataset must be a path or URI")),
            None => Self::default().dataset,
        };
        let known = Table::try_from(EncodeConfig::default()).map_err(D::Error::custom)?;
        let mut encode = Table::new();
        for key in known.keys() {
            encode.extend(ingest.remove(key).map(|value| (key.clone(), value)));
        }
        Ok(Self { dataset, ingest: section::<_, D>(ingest)?, encode: section::<_, D>(encode)? })
    }
}

fn section<'de, T: DeserializeOwned, D: Deserializer<'de>>(table: Table) -> Result<T, D::Error> {
    table.try_into().map_err(|e: toml::de::Error| D::Error::custom(with_key(&e)))
}

/// Where a config comes from: a file, a preset, or a file over a preset; then single values.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Config file (TOML).
    pub config: Option<PathBuf>,
    /// Start from a preset; the config file's values replace its values.
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Replace one value, e.g. train.batch=64.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// Loads, merges and checks it all.
    pub fn load(&self) -> Result<Config> {
        if self.config.is_none() && self.preset.is_none() {
            bail!("neither a config file nor --preset was given");
        }
        let mut table = match &self.preset {
            Some(name) => preset(name)?,
            None => Table::new(),
        };
        if let Some(path) = &self.config {
            merge(&mut table, read(path)?);
        }
        for assignment in &self.set {
            set(&mut table, assignment)?;
        }
        expand_home(&mut table, std::env::home_dir().as_deref());
        if let Some((key, value)) = not_finite(&table) {
            bail!("{key}: {value} is not a finite number");
        }
        let named = || match &self.config {
            Some(path) => path.display().to_string(),
            None => "config".into(),
        };
        let config: Config = table
            .try_into()
            .map_err(|e: toml::de::Error| anyhow!("{}: {}", named(), with_key(&e)))?;
        config.validate().with_context(named)?;
        Ok(config)
    }
}

impl Config {
    /// A preset by name, with single values replaced.
    pub fn preset(name: &str, set: &[String]) -> Result<Self> {
        ConfigArgs { preset: Some(name.into()), set: set.to_vec(), ..ConfigArgs::default() }.load()
    }

    /// A config file by itself.
    pub fn read(path: &Path) -> Result<Self> {
        ConfigArgs { config: Some(path.into()), ..ConfigArgs::default() }.load()
    }

    fn validate(&self) -> Result<()> {
        self.data.ingest.validate()?;
        self.data.encode.validate()?;
        let levels = self.flow.build()?.levels();
        self.model.validate_method(&self.flow)?;
        self.sample.validate_method(self.flow.method)?;
        self.train.validate(levels)?;
        self.sample.validate()?;
        Ok(())
    }

    /// Writes the resolved config with version and command to `folder/config.toml`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("config.toml");
        let version = env!("CARGO_PKG_VERSION");
        let text = format!("# lapflow {version}, resolved\n\n{}", toml::to_string(self)?);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| path.display().to_string())
    }
}

/// What is wrong with a value, and under which key: the error of a table without a text says the key
/// on a line of its own.
fn with_key(error: &toml::de::Error) -> String {
    error.to_string().trim().replace('\n', " ")
}

fn preset(name: &str) -> Result<Table> {
    let found = PRESETS.iter().find(|(known, _)| *known == name);
    let (_, parts) = found.ok_or_else(|| {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        anyhow!("no preset `{name}`; there are {}", names.join(", "))
    })?;
    let mut table = Table::new();
    for part in *parts {
        merge(&mut table, part.parse().with_context(|| format!("preset {name}"))?);
    }
    if name != "demo" {
        set(&mut table, &format!("train.folder=runs/{name}"))?;
    }
    Ok(table)
}

fn read(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        anyhow!("{}, line {line}: {}", path.display(), e.message())
    })
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Replaces `~/` at the start of every text by `home`: no key but those of paths may begin so.
fn expand_home(table: &mut Table, home: Option<&Path>) {
    let Some(home) = home else { return };
    let mut values: Vec<&mut Value> = table.iter_mut().map(|(_, value)| value).collect();
    while let Some(value) = values.pop() {
        match value {
            Value::String(text) => {
                if let Some(rest) = text.strip_prefix("~/") {
                    *text = home.join(rest).to_string_lossy().into_owned();
                }
            }
            Value::Array(inner) => values.extend(inner),
            Value::Table(inner) => values.extend(inner.iter_mut().map(|(_, value)| value)),
            _ => {}
        }
    }
}

/// The first number that is infinite or none, with its key.
fn not_finite(table: &Table) -> Option<(String, f64)> {
    fn find(key: String, value: &Value) -> Option<(String, f64)> {
        match value {
            Value::Float(number) => (!number.is_finite()).then_some((key, *number)),
            Value::Array(inner) => inner.iter().find_map(|value| find(key.clone(), value)),
            Value::Table(inner) => {
                inner.iter().find_map(|(name, value)| find(format!("{key}.{name}"), value))
            }
            _ => None,
        }
    }
    table.iter().find_map(|(name, value)| find(name.clone(), value))
}

/// Applies `section.key=value`; a value that is not TOML is taken as a string.
pub fn set(table: &mut Table, assignment: &str) -> Result<()> {
    let (key, value) = assignment
        .split_once('=')
        .ok_or_else(|| anyhow!("--set {assignment}: expected KEY=VALUE"))?;
    let value = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| Value::String(value.into()));
    let mut keys: Vec<&str> = key.trim().split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut place = table;
    for key in keys {
        let entry = place.entry(key).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else {
            bail!("--set {assignment}: `{key}` is not a section");
        };
        place = inner;
    }
    place.insert(last.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_loads() {
        for (name, _) in PRESETS {
            Config::preset(name, &[]).unwrap();
        }
    }

    /// What `lapflow train --preset NAME --dry-run` counts, for the dataset it would make.
    #[test]
    fn every_preset_can_be_planned() {
        use crate::commands::plan::plan;
        for (name, _) in PRESETS {
            let config = Config::preset(name, &[]).unwrap();
            let classes = if name.contains("imagenet") { 1000 } else { 0 };
            let plan = plan(&config, None, classes).unwrap_or_else(|e| panic!("{name}: {e}"));
            let cost = &plan.cost;
            println!(
                "{name}: {:.1} M, {:.2} GMACs on average, {} levels, {:.1} GB of state",
                cost.parameters as f64 / 1e6,
                cost.mean_macs / 1e9,
                cost.segment_macs.len(),
                plan.state_bytes as f64 / 1e9,
            );
            assert_eq!(cost.segment_macs.len(), config.flow.levels);
            assert!(plan.activation_bytes > 0 && plan.state_bytes >= 16 * cost.parameters);
            let folder = config.train.folder.to_string_lossy().into_owned();
            assert!(folder == format!("runs/{name}") || *name == "demo", "{folder}");
        }
    }

    #[test]
    fn a_resolved_config_reads_back_equal() {
        for (name, _) in PRESETS {
            let config = Config::preset(name, &[]).unwrap();
            let text = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        }
    }

    #[test]
    fn a_home_folder_may_be_written_short() {
        let mut table: Table = "a = '~/x'\nb = { c = ['~/y', 'z/~/'] }".parse().unwrap();
        expand_home(&mut table, Some(Path::new("/home/me")));
        let text = table.to_string();
        assert!(text.contains("\"/home/me/x\"") && text.contains("\"/home/me/y\""), "{text}");
        assert!(text.contains("\"z/~/\""), "{text}");
    }

    #[test]
    fn unknown_keys_are_named() {
        for (text, key) in [
            ("[train]\nstep = 3", "step"),
            ("[data]\nsauce = 'x'", "sauce"),
            ("[flow]\nlevel = 2", "level"),
            ("[extra]\na = 1", "extra"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
    }

    #[test]
    fn single_values_replace_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        fs::write(&path, "[train]\nbatch = 8\n[data]\nsource = 'pictures'").unwrap();
        let args = ConfigArgs {
            config: Some(path),
            preset: Some("demo".into()),
            set: vec!["train.lr=1e-3".into(), "data.dataset=some/where".into()],
        };
        let config = args.load().unwrap();
        assert_eq!((config.train.batch, config.train.lr), (8, 1e-3));
        assert_eq!(config.data.dataset, "some/where");
        let refused = |set: &str| {
            let wrong = ConfigArgs { set: vec![set.into()], ..args.clone() };
            wrong.load().unwrap_err().to_string()
        };
        assert_eq!(refused("train.lr=nan"), "train.lr: NaN is not a finite number");
        assert_eq!(refused("flow.starts=[0.5, inf]"), "flow.starts: inf is not a finite number");
        assert!(refused("train.batch='many'").contains("train.batch"));
        let weights = "autoencoder.weights=['a', 'b', 'c']";
        assert!(refused(weights).contains("[encoder file, decoder file]"), "{}", refused(weights));
        let wrong = ConfigArgs { set: vec!["train.lr".into()], ..args };
        assert!(wrong.load().unwrap_err().to_string().contains("KEY=VALUE"));
    }
}
