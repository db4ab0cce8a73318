//! Mixed precision: what the blocks' products are computed in while training.

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

/// What the blocks' linear layers, attention and GELU take and give. Parameters, their gradients'
/// sums and moments, the residual stream, norms and the loss are f32 in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16; the CPU computes in f32 with every value rounded to bf16.
    Bf16,
}

impl Precision {
    /// Values as the products take them.
    pub(crate) fn narrow(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::F32 => Ok(x.clone()),
            Self::Bf16 if x.device().is_cpu() => x.to_dtype(DType::BF16)?.to_dtype(DType::F32),
            Self::Bf16 => x.to_dtype(DType::BF16),
        }
    }

    /// Values as everything else takes them: f32.
    pub(crate) fn widen(self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(DType::F32)
    }
}
