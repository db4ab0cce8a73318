//! What a run of many days relies on.

mod common;

use candle_core::Device;
use common::{add_shard, bits, dataset, recipe, runtime, train};
use lapflow_model::checkpoint::{Checkpoint, WeightSet};
use lapflow_store::{Batch, Dataset, Loader, LoaderConfig, Metadata};
use lapflow_train::{
    Picture, Recipe, RunFolder, Session, Source, Stages, TrainError, Trainer, run, run_session,
};
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn batches(dataset: &Dataset, batch: usize) -> impl Iterator<Item = Batch> {
    let config = LoaderConfig { batch, window_rows: 16, ..LoaderConfig::default() };
    Loader::new(dataset, config, Default::default()).unwrap().batches().map(Result::unwrap)
}

fn weights(trainer: &Trainer) -> Vec<(String, Vec<f32>)> {
    let values = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    trainer.params().iter().map(|(name, var)| (name.to_string(), values(var))).collect()
}

/// Largest difference of two trainers' weights.
fn difference(a: &Trainer, b: &Trainer) -> f32 {
    let pairs = weights(a).into_iter().zip(weights(b));
    let values = pairs.flat_map(|((_, a), (_, b))| a.into_iter().zip(b));
    values.map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap()
}

#[test]
fn a_batch_in_parts_and_recomputed_blocks_take_the_same_steps() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 21, 1.0));
    for stages in [Stages::Step, Stages::Balanced] {
        let mut whole = recipe(20);
        whole.train.stages = stages;
        let mut changed = [whole.clone(), whole.clone(), whole.clone()];
        changed[0].train.accumulate = 3;
        changed[1].train.recompute = true;
        (changed[2].train.accumulate, changed[2].train.recompute) = (8, true);
        let trainer = |recipe: &Recipe| Trainer::new(recipe, &dataset, &Device::Cpu).unwrap();
        let (mut one, mut others) = (trainer(&whole), changed.map(|recipe| trainer(&recipe)));
        for batch in batches(&dataset, 8).take(6) {
            let expected = one.step(&batch).unwrap();
            for other in &mut others {
                let report = other.step(&batch).unwrap();
                assert!((report.loss - expected.loss).abs() < 1e-5 * expected.loss);
                assert!((report.grad_norm - expected.grad_norm).abs() < 1e-4 * expected.grad_norm);
                assert_eq!(report.macs, expected.macs);
                let levels = |r: &lapflow_train::StepReport| -> Vec<_> {
                    r.levels.iter().map(|(key, _)| *key).collect()
                };
                assert_eq!(levels(&report), levels(&expected));
            }
        }
        let differences = others.each_ref().map(|other| difference(&one, other));
        eprintln!("{stages:?}: weights after six steps differ by {differences:?}");
        assert!(differences.iter().all(|&d| d < 2e-4), "{differences:?}");
    }
}

#[test]
fn everything_resumes_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 21, 1.0));
    let mut recipe = recipe(24);
    recipe.train.accumulate = 2;
    recipe.train.recompute = true;
    recipe.train.ema_decays = vec![0.5, 0.3]; // below the warm start's decay at the end
    let whole = RunFolder::open(folder.path().join("whole")).unwrap();
    train(&recipe, &dataset, &whole);
    let parts = RunFolder::open(folder.path().join("parts")).unwrap();
    let stop = AtomicBool::new(false);
    let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
    run(&mut trainer, &dataset, &parts, &stop, |l| stop.store(l.step == 10, Ordering::Relaxed))
        .unwrap();
    train(&recipe, &dataset, &parts);
    assert_eq!(bits(&whole.checkpoint(24)), bits(&parts.checkpoint(24)));

    // Every average is there, is another one, and resumed exactly.
    let (a, b) = (whole.newest().unwrap().unwrap(), parts.newest().unwrap().unwrap());
    let groups = ["model", "ema", "ema@0.5", "ema@0.3"];
    let values = |checkpoint: &Checkpoint, group: &str| -> Vec<u32> {
        let tensors = checkpoint.group(group).into_values();
        tensors
            .flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .map(f32::to_bits)
            .collect()
    };
    let sets: Vec<_> = groups.iter().map(|group| values(&a, group)).collect();
    assert_eq!(sets, groups.map(|group| values(&b, group)));
    assert_eq!(sets.iter().collect::<HashSet<_>>().len(), 4);
    a.network(WeightSet::Decay(0.3), &Device::Cpu).unwrap();
    assert!(a.network(WeightSet::Decay(0.7), &Device::Cpu).is_err());
}

#[test]
fn the_last_every_nth_and_the_best_checkpoint_stay() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let mut recipe = recipe(30);
    recipe.train.checkpoint_every = 3;
    recipe.train.checkpoint_keep_every = 9;
    recipe.train.checkpoints_kept = 2;
    let run = RunFolder::open(folder.path().join("run")).unwrap();
    train(&recipe, &dataset, &run);
    let expected = [9, 18, 27, 30].map(|step| run.checkpoint(step));
    assert_eq!(run.list().unwrap(), expected);
    let newest = run.newest().unwrap().unwrap();
    let best = &newest.training.as_ref().unwrap()["best"];
    let file = Checkpoint::read(run.best()).unwrap();
    assert_eq!(best["step"].as_u64(), Some(file.card.step));
    // Of the intervals of three steps, none had a lower mean loss.
    let mut again = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
    let losses: Vec<f64> =
        batches(&dataset, 8).take(30).map(|b| again.step(&b).unwrap().loss).collect();
    let means: Vec<f64> = losses.chunks(3).map(|c| c.iter().sum::<f64>() / 3.0).collect();
    let lowest = (0..10).min_by(|&a, &b| means[a].total_cmp(&means[b])).unwrap();
    assert_eq!(file.card.step, 3 * (lowest as u64 + 1));
}

#[test]
fn a_damaged_checkpoint_is_named_with_its_tensor_and_the_one_before_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let run = RunFolder::open(folder.path().join("run")).unwrap();
    train(&recipe(14), &dataset, &run);
    let path = run.checkpoint(14);
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();
    let error = Checkpoint::read(&path).unwrap_err().to_string();
    assert!(error.contains("step-000000014") && error.contains("tensor "), "{error}");
    assert!(error.contains("does not match its checksum"), "{error}");
    assert_eq!(run.newest().unwrap().unwrap().card.step, 7);
}

#[test]
fn what_is_not_finite_is_named_and_a_halt_names_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let mut recipe = recipe(40);
    recipe.train.skips_max = 3;
    let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
    let good = batches(&dataset, 8).next().unwrap();
    let mut poisoned = good.clone();
    poisoned.levels[1].data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let report = trainer.step(&poisoned).unwrap();
    assert_eq!(report.not_finite.unwrap(), "loss of level 0 in stage 0");
    // A learning rate that destroys the weights right after the first checkpoint.
    let run_folder = RunFolder::open(folder.path().join("run")).unwrap();
    recipe.train.steps = 7;
    train(&recipe, &dataset, &run_folder);
    recipe.train.steps = 40;
    (recipe.train.lr, recipe.train.lr_final, recipe.train.clip_norm) = (1e30, 1e30, 0.0);
    recipe.train.log_every = 1;
    let checkpoint = run_folder.newest().unwrap().unwrap();
    let mut trainer = Trainer::resume(&recipe, &dataset, &checkpoint, &Device::Cpu).unwrap();
    let mut lines = Vec::new();
    let error = run(&mut trainer, &dataset, &run_folder, &AtomicBool::new(false), |l| {
        lines.push(l.clone())
    });
    let error = error.unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { times: 3, .. }), "{error}");
    // A line of skipped steps alone has no loss, in the file too.
    let skipped = lines.iter().filter(|line| line.skipped > 0);
    assert!(skipped.clone().count() > 0 && skipped.clone().all(|line| line.loss.is_none()));
    let read = run_folder.read_metrics().unwrap();
    let (read, last) = (read.last().unwrap(), skipped.clone().next_back().unwrap());
    assert_eq!((read.step, read.loss, read.grad_norm), (last.step, None, None));
    let text = std::fs::read_to_string(run_folder.metrics()).unwrap();
    assert!(text.lines().last().unwrap().contains("\"loss\":null,"), "{text}");
    assert!(error.to_string().contains("step-000000007.safetensors"), "{error}");
    assert_eq!(run_folder.newest().unwrap().unwrap().card.step, 7);
}

#[test]
fn a_followed_dataset_gives_the_shards_committed_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let dataset = runtime.block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let mut recipe = recipe(40);
    recipe.train.shuffle_window_rows = 8;
    let version = |trainer: &Trainer| trainer.state().loader.version.unwrap();
    for follow in [false, true] {
        let run_folder = RunFolder::open(folder.path().join(format!("run-{follow}"))).unwrap();
        let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
        let session = Session { follow, ..Session::default() };
        let stop = AtomicBool::new(false);
        let shard = if follow { "2" } else { "1" };
        run_session(&mut trainer, &dataset, session, &run_folder, &stop, |line| {
            if line.step == 5 {
                runtime.block_on(add_shard(&dataset, shard, 100..108, 1.0));
            }
        })
        .unwrap();
        let now = runtime.block_on(dataset.refresh()).unwrap().version();
        assert_eq!(version(&trainer) == now, follow);
        assert!(follow || version(&trainer) == dataset.version());
    }
}

#[test]
fn datasets_are_mixed_by_weight_and_resume_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let first = runtime.block_on(dataset(&folder.path().join("first"), 8, 1.0));
    let second = runtime.block_on(dataset(&folder.path().join("second"), 8, 0.5));
    let mut recipe = recipe(24);
    let uri = second.uri().to_string();
    recipe.train.mixture = vec![Source { dataset: uri, weight: 3.0 }];
    let train = |name: &str, stop_at: u64| {
        let run_folder = RunFolder::open(folder.path().join(name)).unwrap();
        let mut trainer = match run_folder.newest().unwrap() {
            Some(c) => Trainer::resume(&recipe, &first, &c, &Device::Cpu).unwrap(),
            None => Trainer::new(&recipe, &first, &Device::Cpu).unwrap(),
        };
        let session = Session { others: vec![second.clone()], ..Session::default() };
        let stop = AtomicBool::new(false);
        run_session(&mut trainer, &first, session, &run_folder, &stop, |line| {
            stop.store(line.step == stop_at, Ordering::Relaxed);
        })
        .unwrap();
        trainer.state().mixture.clone().unwrap()
    };
    let state = train("whole", 0);
    assert_eq!(state.steps, [6, 18]);
    train("parts", 10);
    assert_eq!(train("parts", 0), state);
    let last =
        |name: &str| bits(&folder.path().join(name).join("checkpoints/step-000000024.safetensors"));
    assert_eq!(last("whole"), last("parts"));
}

#[test]
fn a_dataset_of_other_latents_is_not_mixed_in_nor_resumed_with() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let first = runtime.block_on(dataset(&folder.path().join("first"), 8, 1.0));
    let other = runtime.block_on(of_another_autoencoder(&folder.path().join("other"), &first));
    let run_folder = RunFolder::open(folder.path().join("run")).unwrap();
    let mut trainer = Trainer::new(&recipe(5), &first, &Device::Cpu).unwrap();
    let session = Session { others: vec![other.clone()], ..Session::default() };
    let stop = AtomicBool::new(false);
    let error = run_session(&mut trainer, &first, session, &run_folder, &stop, |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("\"pixel\"") && error.contains("\"strange\""), "{error}");
    assert!(error.contains(first.uri()) && error.contains(other.uri()), "{error}");

    trainer.save(&run_folder.checkpoint(1)).unwrap();
    let checkpoint = run_folder.newest().unwrap().unwrap();
    let error = Trainer::resume(&recipe(5), &other, &checkpoint, &Device::Cpu).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("\"pixel\"") && error.contains("\"strange\""), "{error}");
}

async fn of_another_autoencoder(folder: &Path, like: &Dataset) -> Dataset {
    let metadata = Metadata {
        autoencoder: serde_json::json!({ "architecture": "strange" }),
        ..like.metadata().clone()
    };
    let dataset = Dataset::create(folder.to_str().unwrap(), &metadata).await.unwrap();
    add_shard(&dataset, "0", 0..8, 1.0).await;
    dataset.refresh().await.unwrap()
}

#[test]
fn grids_of_samples_come_every_n_steps_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let mut recipe = recipe(10);
    recipe.train.sample_every = 4;
    let run_folder = RunFolder::open(folder.path().join("run")).unwrap();
    let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
    let draw = Box::new(|snapshot: &Checkpoint| {
        // What is drawn from is the average, not the weights.
        assert_ne!(
            snapshot.group("ema")["x_embedder.level0.proj.weight"].to_vec2::<f32>()?,
            snapshot.group("model")["x_embedder.level0.proj.weight"].to_vec2::<f32>()?,
        );
        let png = vec![snapshot.card.step as u8];
        Ok(Picture { width: 1, height: 1, png })
    });
    let session = Session { draw: Some(draw), ..Session::default() };
    let stop = AtomicBool::new(false);
    run_session(&mut trainer, &dataset, session, &run_folder, &stop, |_| {}).unwrap();
    for step in [4u64, 8, 10] {
        assert_eq!(std::fs::read(run_folder.samples(step)).unwrap(), [step as u8]);
    }
    assert!(!run_folder.samples(5).exists());
}

#[test]
fn caches_change_nothing_but_where_bytes_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 40, 1.0));
    let plain = recipe(12);
    let cache = folder.path().join("cache");
    let mut cached = plain.clone();
    cached.train.disk_cache = Some(cache.clone());
    cached.train.memory_cache_bytes_max = 1 << 20;
    let [plain, cached] = [("plain", plain), ("cached", cached)].map(|(name, recipe)| {
        let run = RunFolder::open(folder.path().join(name)).unwrap();
        train(&recipe, &dataset, &run);
        bits(&run.checkpoint(12))
    });
    assert!(plain == cached, "the weights differ");
    assert!(std::fs::read_dir(cache).unwrap().count() > 1, "nothing was kept");
}
