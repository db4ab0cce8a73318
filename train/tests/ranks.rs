//! Several ranks, as threads of one process: the same training as one rank's, whatever their number.

mod common;

use candle_core::{DType, Device, Tensor};
use common::{dataset, recipe, runtime, trainer};
use lapflow_model::checkpoint::Checkpoint;
use lapflow_store::Dataset;
use lapflow_train::{Communicator, Recipe, Result, RunFolder, Stages, Trainer, run};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Barrier, Mutex};

/// Ranks that meet at a barrier and add in the order of their numbers.
struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

struct Shared {
    barrier: Barrier,
    parts: Vec<Mutex<Vec<f64>>>,
}

impl Threads {
    fn start(count: usize) -> Vec<Self> {
        let parts = (0..count).map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared { barrier: Barrier::new(count), parts });
        (0..count).map(|rank| Self { rank, shared: shared.clone() }).collect()
    }
}

impl Threads {
    /// What `answer` makes of every rank's values.
    fn exchange(&self, values: Tensor, answer: impl Fn(&[Vec<f64>]) -> Vec<f64>) -> Result<Tensor> {
        let own = values.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        *self.shared.parts[self.rank].lock().unwrap() = own;
        self.shared.barrier.wait();
        let parts: Vec<_> =
            self.shared.parts.iter().map(|part| part.lock().unwrap().clone()).collect();
        self.shared.barrier.wait();
        let answer = Tensor::from_vec(answer(&parts), values.shape(), values.device())?;
        Ok(answer.to_dtype(values.dtype())?)
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.parts.len()
    }

    fn sum(&self, values: Tensor) -> Result<Tensor> {
        self.exchange(values, |parts| {
            parts.iter().skip(1).fold(parts[0].clone(), |sums, part| {
                sums.iter().zip(part).map(|(sum, x)| sum + x).collect()
            })
        })
    }

    fn broadcast(&self, values: Tensor, root: usize) -> Result<Tensor> {
        self.exchange(values, |parts| parts[root].clone())
    }

    fn abort(&self) -> ! {
        panic!("rank {} aborted", self.rank)
    }
}

/// Trains in `folder` on so many ranks, from the newest checkpoint where there is one.
fn train(recipe: &Recipe, dataset: &Dataset, folder: &Path, ranks: usize) {
    std::thread::scope(|scope| {
        for rank in Threads::start(ranks) {
            scope.spawn(move || {
                let folder = RunFolder::open(folder).unwrap();
                let trainer = trainer(recipe, dataset, &folder);
                // Nobody may write the folder before all have looked at it.
                rank.shared.barrier.wait();
                let mut trainer = trainer.among(Rc::new(rank));
                let stop = AtomicBool::new(false);
                run(&mut trainer, dataset, &folder, &stop, |_| ()).unwrap();
            });
        }
    });
}

fn weights(folder: &Path, step: u64) -> Vec<(String, Vec<f32>)> {
    let path = RunFolder::open(folder).unwrap().checkpoint(step);
    let checkpoint = Checkpoint::read(&path).unwrap();
    ["model", "ema"]
        .iter()
        .flat_map(|group| checkpoint.group(group))
        .map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap()))
        .collect()
}

#[test]
fn any_number_of_ranks_trains_as_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let data = runtime().block_on(dataset(&folder.path().join("data"), 37, 1.0));
    for stages in [Stages::Balanced, Stages::Step] {
        let at = |name: &str| folder.path().join(format!("{stages:?}-{name}"));
        let steps = |steps| {
            let mut recipe = recipe(steps);
            recipe.train.stages = stages;
            // The schedule is that of the longer run in both parts of it.
            (recipe.train.lr_final, recipe.train.schedule) =
                (0.0, lapflow_train::Schedule::Constant);
            recipe
        };
        train(&steps(10), &data, &at("one"), 1);
        train(&steps(10), &data, &at("two"), 2);
        train(&steps(10), &data, &at("four"), 4);
        train(&steps(6), &data, &at("changing"), 4);
        train(&steps(10), &data, &at("changing"), 2);
        let one = weights(&at("one"), 10);
        let scale = one.iter().flat_map(|(_, x)| x).fold(0f32, |most, x| most.max(x.abs()));
        for name in ["two", "four", "changing"] {
            let other = weights(&at(name), 10);
            let pairs = one.iter().zip(&other).flat_map(|((_, a), (_, b))| a.iter().zip(b));
            let error = pairs.map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
            println!("{stages:?}, {name}: largest difference {error:e}, largest weight {scale}");
            assert!(error < 1e-4 * scale, "{name}: {error}");
        }
    }
}

#[test]
fn a_sharded_optimizer_gives_the_same_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let data = runtime().block_on(dataset(&folder.path().join("data"), 37, 1.0));
    let at = |name: &str| folder.path().join(name);
    let steps = |steps, sharded| {
        let mut recipe = recipe(steps);
        recipe.train.schedule = lapflow_train::Schedule::Constant;
        recipe.train.ema_decays = vec![0.5];
        recipe.train.shard_optimizer = sharded;
        recipe
    };
    for ranks in [2, 4] {
        let (whole, shared) = (at(&format!("whole-{ranks}")), at(&format!("shared-{ranks}")));
        train(&steps(8, false), &data, &whole, ranks);
        // On the way the state goes through a checkpoint, which must be whole.
        train(&steps(5, true), &data, &shared, ranks);
        train(&steps(8, true), &data, &shared, ranks);
        let read = |folder: &Path| {
            let path = RunFolder::open(folder).unwrap().checkpoint(8);
            let checkpoint = Checkpoint::read(&path).unwrap();
            let groups = ["model", "ema", "ema@0.5", "adam.m", "adam.v"];
            let groups = groups.map(|group| checkpoint.group(group));
            assert!(groups.iter().all(|group| !group.is_empty()));
            groups.map(|group| {
                let values = group.into_iter().map(|(name, tensor)| {
                    (name, tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
                });
                values.collect::<Vec<_>>()
            })
        };
        assert!(read(&whole) == read(&shared), "{ranks} ranks: not the same to the last bit");
    }
}

#[test]
fn a_batch_that_does_not_divide_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let recipe = recipe(1);
    let run_folder = RunFolder::open(folder.path().join("run")).unwrap();
    let rank = Threads::start(3).remove(0);
    let trainer = Trainer::new(&recipe, &data, &Device::Cpu).unwrap();
    let mut trainer = trainer.among(Rc::new(rank));
    let error = run(&mut trainer, &data, &run_folder, &AtomicBool::new(false), |_| ()).unwrap_err();
    assert!(error.to_string().contains("does not divide into 3 ranks"), "{error}");
}
