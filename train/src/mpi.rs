//! Ranks of an MPI job: `mpirun -np 4 lapflow train ...`.

use crate::error::{Result, TrainError};
use crate::ranks::Communicator;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::{Equivalence, Root as _};

/// All processes of the job. MPI ends with it.
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
    fn total<T: Equivalence + Copy + Default>(&self, values: &mut [T]) {
        let root = self.world.process_at_rank(0);
        if self.rank() == 0 {
            let mut sums = vec![T::default(); values.len()];
            root.reduce_into_root(&*values, &mut sums[..], SystemOperation::sum());
            values.copy_from_slice(&sums);
        } else {
            root.reduce_into(&*values, SystemOperation::sum());
        }
        root.broadcast_into(values);
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        usize::try_from(self.world.rank()).unwrap_or_default()
    }

    fn size(&self) -> usize {
        usize::try_from(self.world.size()).unwrap_or(1)
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.total(values);
        Ok(())
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.total(values);
        Ok(())
    }

    fn abort(&self) -> ! {
        self.world.abort(1)
    }
}
