//! The forward and backward passes of a step, part after part, and what they add up to over the ranks.

use super::Trainer;
use crate::batch::Examples;
use crate::error::{Result, TrainError};
use crate::gradients::Gathering;
use crate::loss::{GroupLoss, Part};
use crate::ranks::sum_numbers;
use candle_core::Tensor;
use lapflow_model::net::Gradients;
use lapflow_model::on_pool;
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::mpsc::Sender;
use std::thread;

/// What the parts of a batch add up to.
pub(super) struct Sums {
    /// Samples of all ranks.
    pub images: usize,
    /// One a parameter; absent for zero.
    pub grads: Vec<Option<Tensor>>,
    pub loss: f64,
    /// Sum and count of squared errors by (stage, level).
    pub levels: BTreeMap<(usize, usize), (f64, usize)>,
    pub macs: f64,
}

/// Tells that a backward pass has ended, however it did.
struct End<'a>(&'a Sender<Gradients>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // The receiver is the trainer's, which waits for this.
        let _ = self.0.send(Gradients::new());
    }
}

impl Trainer {
    /// Loss and gradients of all ranks' samples, here part after part of this rank's.
    pub(super) fn gradients(&self, Examples { images, parts }: &Examples) -> Result<Sums> {
        let mut grads = Gathering::new(self.ranks.as_ref(), &self.arrival);
        let (mut total, mut levels, mut macs) = (0.0, BTreeMap::<_, (f64, usize)>::new(), 0.0);
        for (i, part) in parts.iter().enumerate() {
            let share = part.count() as f64 / *images as f64;
            let last = i + 1 == parts.len();
            let loss = self.differentiate(part, share, last, &mut grads)?;
            total += share * scalar(&loss.total)?;
            macs += 3.0 * (part.count() as u64 * self.stage_macs[part.stage]) as f64;
            for (k, error) in &loss.levels {
                let entry = levels.entry((part.stage, *k)).or_default();
                entry.0 += part.count() as f64 * scalar(error)?;
                entry.1 += part.count();
            }
        }
        let grads = grads.finish()?;
        let mut sums = Sums { images: *images, grads, loss: total, levels, macs };
        self.sum_over_ranks(&mut sums)?;
        Ok(sums)
    }

    /// The loss of `part`; the gradients of `share` of it are added to `grads` as they come, and those
    /// of the `last` part exchanged with the other ranks at the same time.
    fn differentiate(
        &self,
        part: &Part,
        share: f64,
        last: bool,
        grads: &mut Gathering,
    ) -> Result<GroupLoss> {
        let (net, device, (sender, blocks)) = (&self.net, &self.device, &self.blocks);
        let loss = self.drawing.loss();
        let (loss, mut others) = thread::scope(|scope| {
            let backward = scope.spawn(|| {
                let _end = End(sender);
                on_pool(device, || {
                    let loss = loss.evaluate(net, part)?;
                    let others = (&loss.total * share)?.backward()?;
                    Ok::<_, TrainError>((loss, others))
                })
            });
            let ended = |block: &Gradients| block.is_empty();
            for (i, block) in blocks.iter().take_while(|block| !ended(block)).enumerate() {
                grads.add(block)?;
                if last {
                    grads.blocks_done(i + 1)?;
                }
            }
            backward.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        let vars = self.params.iter().map(|(_, var)| var);
        grads.add(vars.filter_map(|var| Some((var.id(), others.remove(var)?))))?;
        Ok(loss)
    }

    /// Loss and figures of all ranks.
    fn sum_over_ranks(&self, sums: &mut Sums) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        // Ranks may have seen other stages: a place for every (stage, level).
        let count = self.drawing.flow.levels();
        let mut flat = vec![0.0; 2 * count * count];
        for ((stage, level), (sum, samples)) in &sums.levels {
            let place = 2 * (stage * count + level);
            (flat[place], flat[place + 1]) = (*sum, *samples as f64);
        }
        flat.extend([sums.loss, sums.macs]);
        let flat = sum_numbers(self.ranks.as_ref(), &flat)?;
        (sums.loss, sums.macs) = (flat[flat.len() - 2], flat[flat.len() - 1]);
        sums.levels = flat[..2 * count * count]
            .chunks_exact(2)
            .enumerate()
            .filter(|(_, pair)| pair[1] > 0.0)
            .map(|(i, pair)| ((i / count, i % count), (pair[0], pair[1] as usize)))
            .collect();
        Ok(())
    }
}

fn scalar(value: &Tensor) -> Result<f64> {
    Ok(f64::from(value.to_scalar::<f32>()?))
}
