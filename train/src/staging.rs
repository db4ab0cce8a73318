//! Steps in the order in which they are taken, with the examples of the next one drawn and on their way
//! to a GPU while it works on this one.

use crate::error::{Result, TrainError};
use crate::examples::Examples;
use crate::feed::Feed;
use crate::trainer::Trainer;
use lapflow_model::kernels::Upload;
use lapflow_store::{LoaderState, MixtureState};
use std::sync::mpsc::{self, Receiver};
use std::thread;

/// One step's examples, and where the loader goes on after it.
pub(crate) struct Staged {
    pub examples: Examples,
    pub state: LoaderState,
    pub mixture: Option<MixtureState>,
}

/// Where steps come from.
pub(crate) enum Staging {
    /// Drawn when they are asked for: on a CPU, whose cores have no time to spare.
    Here(Feed),
    /// Drawn by a thread that is one step ahead of the one it has sent. It ends with the receiver.
    Ahead(Receiver<Result<Option<Staged>>>),
}

impl Staging {
    /// The steps of `feed` from where `trainer` stands.
    ///
    /// # Errors
    /// When the device refuses a stream.
    pub fn start(mut feed: Feed, trainer: &Trainer) -> Result<Self> {
        if trainer.device().is_cpu() {
            return Ok(Self::Here(feed));
        }
        let (sender, receiver) = mpsc::sync_channel(0);
        let (drawing, world) = (trainer.drawing(), trainer.ranks().size());
        let (mut upload, mut step) = (Upload::new(trainer.device())?, trainer.state().step);
        let mut next = move || {
            let Some((batch, mixture)) = feed.next()? else { return Ok(None) };
            let examples = drawing.examples(&batch, step, world)?.uploaded(&mut upload)?;
            step += 1;
            Ok(Some(Staged { examples, state: batch.state, mixture }))
        };
        let spawned = thread::Builder::new().name("staging".into()).spawn(move || {
            loop {
                let staged = next();
                let more = matches!(staged, Ok(Some(_)));
                if sender.send(staged).is_err() || !more {
                    break;
                }
            }
        });
        spawned.map_err(|e| TrainError::Config(format!("a thread that stages steps: {e}")))?;
        Ok(Self::Ahead(receiver))
    }

    /// The next step of `trainer`; none after the last batch.
    pub fn next(&mut self, trainer: &Trainer) -> Result<Option<Staged>> {
        match self {
            Self::Here(feed) => {
                let Some((batch, mixture)) = feed.next()? else { return Ok(None) };
                let examples = trainer.examples(&batch)?;
                Ok(Some(Staged { examples, state: batch.state, mixture }))
            }
            // The thread ends without a word only when it has panicked.
            Self::Ahead(receiver) => receiver.recv().unwrap_or_else(|_| {
                Err(TrainError::Config("the thread that stages steps has ended".into()))
            }),
        }
    }
}
