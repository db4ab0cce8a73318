//! Time of whole training steps, stage by stage: see `bench/train`.
//!
//! Arguments: the model (S or B), the batch and how many steps of each stage to time. Prints one
//! JSON object.

use candle_core::Device;
use lapflow_model::flow::{FlowConfig, Path};
use lapflow_model::net::{ModelConfig, Preset, cost};
use lapflow_store::LevelSpec;
use lapflow_train::{Loss, Recipe, TrainConfig, Trainer, geometry, synthetic};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLASSES: usize = 1000;
const LEVELS: usize = 2;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let size = args.next().ok_or("which model, S or B?")?;
    let batch: usize = args.next().ok_or("which batch?")?.parse()?;
    let steps: usize = args.next().ok_or("how many steps?")?.parse()?;
    let folder = tempfile::tempdir()?;
    let uri = folder.path().to_str().ok_or("a folder with a plain name")?;
    let dataset =
        tokio::runtime::Runtime::new()?.block_on(synthetic::dataset(uri, &specs(), CLASSES))?;

    let model = ModelConfig {
        preset: match size.as_str() {
            "S" => Preset::S,
            "B" => Preset::B,
            _ => return Err("the model is S or B".into()),
        },
        ..ModelConfig::default()
    };
    let flow = FlowConfig { levels: LEVELS, ..FlowConfig::default() };
    let path = Path::new(&flow)?;
    // Both stages to warm up, then in turn.
    let stages: Vec<usize> = (0..2 * (steps + 1)).map(|i| i % LEVELS).collect();
    let train = alternating(&path, &stages, batch)?;
    let recipe = Recipe { model, flow, train, autoencoder: serde_json::json!({}) };
    let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu)?;
    let batch = synthetic::batch(&specs(), batch, CLASSES);
    let mut seconds = vec![Vec::new(); LEVELS];
    for &stage in &stages {
        let start = Instant::now();
        let report = trainer.step(&batch)?;
        assert_eq!(report.levels[0].0.0, stage);
        seconds[stage].push(start.elapsed().as_secs_f64());
    }
    let cost = cost(&recipe.model, &geometry(dataset.metadata(), LEVELS), &path);
    for stage in &mut seconds {
        stage.remove(0);
    }
    let result = serde_json::json!({
        "what": "lapflow", "parameters": cost.parameters, "macs": cost.segment_macs,
        "seconds": seconds,
    });
    println!("{result}");
    Ok(())
}

/// A recipe whose seed draws `stages` for its first steps.
fn alternating(path: &Path, stages: &[usize], batch: usize) -> Result<TrainConfig, Error> {
    let positions: Vec<u32> = (0..batch as u32).collect();
    let drawn = |config: &TrainConfig, step: usize| {
        let loss = Loss { flow: path, config, classes: CLASSES };
        loss.groups(step as u64, batch, &positions)[0].stage
    };
    (0..1 << 24)
        .map(|seed| TrainConfig { seed, batch, ..TrainConfig::default() })
        .find(|config| (0..stages.len()).all(|step| drawn(config, step) == stages[step]))
        .ok_or_else(|| "no seed draws these stages".into())
}

fn specs() -> Vec<LevelSpec> {
    (0..LEVELS).map(|k| LevelSpec { channels: 4, height: 32 >> k, width: 32 >> k }).collect()
}
