//! Training end to end on small datasets made here.

mod common;

use candle_core::{Device, Tensor};
use common::{CHANNELS, SIZE, bits, dataset, recipe, runtime, train};
use lapflow_model::checkpoint::{Checkpoint, WeightSet};
use lapflow_model::net::Precision;
use lapflow_store::{Loader, LoaderConfig};
use lapflow_train::{RunFolder, Stages, Trainer, run};
use std::sync::atomic::{AtomicBool, Ordering};

/// With one class a sample, the velocity follows from state, time and label: the loss can vanish.
#[test]
fn one_batch_is_overfit() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let dataset = runtime.block_on(dataset(&folder.path().join("data"), 4, 1.0));
    let mut recipe = recipe(500);
    recipe.train.label_dropout = 0.0;
    recipe.train.log_every = 50;
    recipe.train.checkpoint_every = 1000;
    let losses = train(&recipe, &dataset, &RunFolder::open(folder.path().join("run")).unwrap());
    eprintln!("losses every 50 steps: {losses:.3?}");
    assert!(losses[0] > 1.0, "the first steps cannot know the data");
    assert!(*losses.last().unwrap() < 0.2, "{losses:?}");
}

#[test]
fn bf16_trains_as_f32_does_and_no_parameter_stalls() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    // Losses of every 50 steps, and how far each parameter went from where it began.
    let trained = |name: &str, precision: Precision| {
        let mut recipe = recipe(300);
        recipe.train.precision = precision;
        recipe.train.log_every = 50;
        let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
        let values = |trainer: &Trainer| -> Vec<(String, Tensor)> {
            let copy = |(name, var): (&str, &candle_core::Var)| (name.into(), var.copy().unwrap());
            trainer.params().iter().map(copy).collect()
        };
        let before = values(&trainer);
        let run_folder = RunFolder::open(folder.path().join(name)).unwrap();
        let mut losses = Vec::new();
        let stop = AtomicBool::new(false);
        run(&mut trainer, &dataset, &run_folder, &stop, |line| losses.push(line.loss.unwrap()))
            .unwrap();
        let way = |(before, after): (&(String, Tensor), &(String, Tensor))| {
            let way = (&before.1 - &after.1).unwrap().sqr().unwrap().sum_all().unwrap();
            (before.0.clone(), way.to_scalar::<f32>().unwrap().sqrt())
        };
        let ways: Vec<_> = before.iter().zip(&values(&trainer)).map(way).collect();
        (losses, ways)
    };
    let (f32_losses, f32_ways) = trained("f32", Precision::F32);
    let (bf16_losses, bf16_ways) = trained("bf16", Precision::Bf16);
    eprintln!("losses every 50 steps: f32 {f32_losses:.4?}, bf16 {bf16_losses:.4?}");
    assert_ne!(f32_losses, bf16_losses, "bf16 rounds");
    for (f32_loss, bf16_loss) in f32_losses.iter().zip(&bf16_losses) {
        assert!((f32_loss - bf16_loss).abs() < 0.05 * f32_loss, "{f32_losses:?} {bf16_losses:?}");
    }
    for ((name, f32_way), (_, bf16_way)) in f32_ways.iter().zip(&bf16_ways) {
        let ratio = bf16_way / f32_way;
        assert!((0.7..1.4).contains(&ratio), "{name}: {bf16_way} in bf16, {f32_way} in f32");
    }
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped_to_the_last_bit() {
    for stages in [Stages::Step, Stages::Balanced] {
        let folder = tempfile::tempdir().unwrap();
        let dataset = runtime().block_on(dataset(&folder.path().join("data"), 21, 1.0));
        let mut recipe = recipe(24);
        recipe.train.stages = stages;
        let whole = RunFolder::open(folder.path().join("whole")).unwrap();
        train(&recipe, &dataset, &whole);

        let parts = RunFolder::open(folder.path().join("parts")).unwrap();
        let stop = AtomicBool::new(false);
        let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
        // Stops at the line of step 10; steps 7 and 10 have checkpoints then.
        let outcome = run(&mut trainer, &dataset, &parts, &stop, |line| {
            stop.store(line.step == 10, Ordering::Relaxed);
        })
        .unwrap();
        assert!(!outcome.finished && outcome.step == 10);
        // As after a crash: the newest checkpoint is gone, another is cut short.
        std::fs::remove_file(&outcome.checkpoint).unwrap();
        std::fs::write(parts.checkpoint(9), b"cut short").unwrap();
        train(&recipe, &dataset, &parts);

        assert_eq!(bits(&whole.checkpoint(24)), bits(&parts.checkpoint(24)), "{stages:?}");
        let steps = |folder: &RunFolder| -> Vec<(u64, f64)> {
            let lines = folder.read_metrics().unwrap();
            lines.iter().filter(|l| l.step > 10).map(|l| (l.step, l.loss.unwrap())).collect()
        };
        assert_eq!(steps(&whole), steps(&parts));
    }
}

#[test]
fn a_step_that_is_not_finite_changes_nothing_and_many_halt_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let mut trainer = Trainer::new(&recipe(50), &dataset, &Device::Cpu).unwrap();
    let config = LoaderConfig { batch: 8, window_rows: 16, ..LoaderConfig::default() };
    let mut batches = Loader::new(&dataset, config, Default::default()).unwrap().batches();
    let good = batches.next().unwrap().unwrap();
    let mut poisoned = good.clone();
    poisoned.levels[1].data[..4].copy_from_slice(&f32::NAN.to_le_bytes());

    assert!(!trainer.step(&good).unwrap().skipped);
    let snapshot = |trainer: &Trainer| -> Vec<Vec<f32>> {
        let values = |(_, var): (&str, &candle_core::Var)| var.flatten_all().unwrap().to_vec1();
        trainer.params().iter().map(|param| values(param).unwrap()).collect()
    };
    let before = snapshot(&trainer);
    assert!(trainer.step(&poisoned).unwrap().skipped);
    assert_eq!(before, snapshot(&trainer));
    assert_eq!(trainer.state().skipped, 1);
    assert!(!trainer.step(&good).unwrap().skipped);
    let error = (0..10).map(|_| trainer.step(&poisoned)).find_map(Result::err).unwrap();
    assert!(error.to_string().contains("10 times in a row"), "{error}");
}

#[test]
fn what_does_not_belong_together_is_refused_with_both_sides_named() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 4, 1.0));
    let trainer = Trainer::new(&recipe(5), &dataset, &Device::Cpu).unwrap();
    let path = folder.path().join("c.safetensors");
    trainer.save(&path).unwrap();
    let checkpoint = Checkpoint::read(&path).unwrap();
    let mut other = recipe(5);
    other.model.depth = Some(3);
    let error = Trainer::resume(&other, &dataset, &checkpoint, &Device::Cpu).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("\"depth\":2") && error.contains("\"depth\":3"), "{error}");
}

#[test]
fn unreadable_checkpoints_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 4, 1.0));
    let trainer = Trainer::new(&recipe(5), &dataset, &Device::Cpu).unwrap();
    let path = folder.path().join("c.safetensors");
    trainer.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&bytes[..0], &bytes[..100], &bytes[..bytes.len() - 1]] {
        std::fs::write(&path, damaged).unwrap();
        let error = Checkpoint::read(&path).unwrap_err().to_string();
        assert!(error.contains("c.safetensors"), "{error}");
    }
    std::fs::write(&path, &bytes).unwrap();
    // The header holds the card as a JSON string, its quotes escaped.
    let version = b"\\\"version\\\":1";
    let at = bytes.windows(version.len()).position(|window| window == version).unwrap();
    let mut later = bytes;
    later[at + version.len() - 1] = b'9';
    std::fs::write(&path, &later).unwrap();
    let error = Checkpoint::read(&path).unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
}

/// Averaged weights are what sampling gets: after training they differ from the raw ones.
#[test]
fn checkpoints_give_averaged_and_raw_networks() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let run_folder = RunFolder::open(folder.path().join("run")).unwrap();
    train(&recipe(20), &dataset, &run_folder);
    let checkpoint = run_folder.newest().unwrap().unwrap();
    let x = Tensor::ones((2, CHANNELS, SIZE / 2, SIZE / 2), candle_core::DType::F32, &Device::Cpu);
    let t = Tensor::new(&[0.2f32, 0.6], &Device::Cpu).unwrap();
    let out = |set| {
        let net = checkpoint.network(set, &Device::Cpu).unwrap();
        let v = net.forward(&[x.as_ref().unwrap().clone()], &t, None).unwrap().remove(0);
        v.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_ne!(out(WeightSet::Ema), out(WeightSet::Raw));
    assert_eq!(checkpoint.card.step, 20);
    assert_eq!(run_folder.list().unwrap().len(), 2);
}
