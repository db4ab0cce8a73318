//! Blocks in training: one operation each, with a backward pass written by hand.

use super::block::{Block, Saved};
use super::layers::Gradients;
use super::precision::Precision;
use crate::error::Result;
use crate::kernels::TokenLayout;
use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result as TensorResult, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, Storage, backend::BackendStorage};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

/// Runs blocks so that Candle sees one operation on a block's input and the conditioning.
///
/// The gradients of the blocks' parameters cannot travel with those of the pass around them: they
/// are sent from here, block after block.
#[derive(Clone)]
pub(crate) struct Tape {
    gradients: Sender<Gradients>,
    /// Whether a block keeps its input alone and runs again in the backward pass.
    recompute: bool,
    precision: Precision,
}

impl Tape {
    pub fn new(recompute: bool, precision: Precision, gradients: Sender<Gradients>) -> Self {
        Self { gradients, recompute, precision }
    }

    /// [`Block::forward`], on the tape.
    pub fn forward(
        &self,
        block: &Arc<Block>,
        x: &Tensor,
        silu_c: &Tensor,
        layout: &TokenLayout,
        finest: usize,
    ) -> Result<Tensor> {
        let (x_alone, c_alone) = (x.detach(), silu_c.detach());
        let (out, saved) =
            block.forward_saved(self.precision, &x_alone, &c_alone, layout, finest)?;
        let output = Mutex::new(Some(out.detach()));
        let saved = Mutex::new(Some(saved.detach()).filter(|_| !self.recompute));
        let (block, layout, tape) = (block.clone(), layout.clone(), self.clone());
        Ok(x.apply_op2(silu_c, Step { block, layout, finest, output, saved, tape })?)
    }
}

/// A block as one operation.
struct Step {
    block: Arc<Block>,
    layout: TokenLayout,
    finest: usize,
    /// The result, until the forward pass hands it on.
    output: Mutex<Option<Tensor>>,
    /// The activations until the backward pass, unless they are recomputed.
    saved: Mutex<Option<Saved>>,
    tape: Tape,
}

impl Step {
    fn output(&self) -> TensorResult<Tensor> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        output.ok_or_else(|| Error::msg("a block's step runs forward once"))
    }
}

impl CustomOp2 for Step {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(
        &self,
        _x: &CpuStorage,
        layout: &Layout,
        _silu_c: &CpuStorage,
        _c_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.output()?.flatten_all()?.to_vec1()?), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _x: &CudaStorage,
        layout: &Layout,
        _silu_c: &CudaStorage,
        _c_layout: &Layout,
    ) -> TensorResult<(CudaStorage, Shape)> {
        let output = self.output()?;
        let (storage, own) = output.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(Error::msg("a block's step stays on its device"));
        };
        Ok((storage.try_clone(own)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        silu_c: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>)> {
        let (x, c) = (x.detach(), silu_c.detach());
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let saved = match saved {
            Some(saved) => saved,
            None => {
                let precision = self.tape.precision;
                let again = self.block.forward_saved(precision, &x, &c, &self.layout, self.finest);
                again.map_err(Error::wrap)?.1.detach()
            }
        };
        let mut gradients = Gradients::new();
        let tensors = [&x, &c, grad];
        let [dx, dc] = self
            .block
            .backward(
                self.tape.precision,
                tensors,
                &saved,
                &self.layout,
                self.finest,
                &mut gradients,
            )
            .map_err(Error::wrap)?;
        self.tape.gradients.send(gradients).map_err(Error::wrap)?;
        Ok((Some(dx), Some(dc)))
    }
}
