//! Ranks of an MPI job: `mpirun -np 4 lapflow train ...`.

use crate::error::{Result, TrainError};
use crate::ranks::Communicator;
use candle_core::{DType, Tensor, WithDType};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::request::{LocalScope, Request, scope};
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::{Equivalence, Root as _};
use std::thread;
use std::time::Duration;

/// How often a rank that waits looks for the others.
const POLL: Duration = Duration::from_micros(50);

/// All processes of the job. MPI ends with it. Tensors travel through the host's memory.
pub struct Mpi {
    world: SimpleCommunicator,
    _universe: Universe,
}

impl Mpi {
    /// Joins the job that this process was started in.
    ///
    /// # Errors
    /// When MPI was initialized before.
    pub fn join() -> Result<Self> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| TrainError::Config("MPI was initialized before".into()))?;
        Ok(Self { world: universe.world(), _universe: universe })
    }

    /// At the first rank, and from there to all, so that no rank's rounding is its own.
    fn total<T: Equivalence + WithDType + Default>(&self, values: &Tensor) -> Result<Tensor> {
        let mut numbers = values.flatten_all()?.to_vec1::<T>()?;
        let root = self.world.process_at_rank(0);
        if self.rank() == 0 {
            let mut sums = vec![T::default(); numbers.len()];
            scope(|scope| {
                let (ours, op) = (&numbers[..], SystemOperation::sum());
                patiently(root.immediate_reduce_into_root(scope, ours, &mut sums[..], op));
            });
            numbers = sums;
        } else {
            scope(|scope| {
                let op = SystemOperation::sum();
                patiently(root.immediate_reduce_into(scope, &numbers[..], op));
            });
        }
        scope(|scope| patiently(root.immediate_broadcast_into(scope, &mut numbers[..])));
        Ok(Tensor::from_vec(numbers, values.shape(), values.device())?)
    }

    fn values_of<T: Equivalence + WithDType>(
        &self,
        values: &Tensor,
        root: usize,
    ) -> Result<Tensor> {
        let mut numbers = values.flatten_all()?.to_vec1::<T>()?;
        let root = i32::try_from(root).map_err(candle_core::Error::wrap)?;
        let root = self.world.process_at_rank(root);
        scope(|scope| patiently(root.immediate_broadcast_into(scope, &mut numbers[..])));
        Ok(Tensor::from_vec(numbers, values.shape(), values.device())?)
    }
}

/// Waits without keeping a core busy, which the backward pass has a use for.
fn patiently<'a, D: ?Sized>(mut request: Request<'a, D, &LocalScope<'a>>) {
    while let Err(unfinished) = request.test() {
        request = unfinished;
        thread::sleep(POLL);
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        usize::try_from(self.world.rank()).unwrap_or_default()
    }

    fn size(&self) -> usize {
        usize::try_from(self.world.size()).unwrap_or(1)
    }

    fn sum(&self, values: Tensor) -> Result<Tensor> {
        match values.dtype() {
            DType::F64 => self.total::<f64>(&values),
            _ => self.total::<f32>(&values),
        }
    }

    fn broadcast(&self, values: Tensor, root: usize) -> Result<Tensor> {
        match values.dtype() {
            DType::F64 => self.values_of::<f64>(&values, root),
            _ => self.values_of::<f32>(&values, root),
        }
    }

    fn abort(&self) -> ! {
        self.world.abort(1)
    }
}
