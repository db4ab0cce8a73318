//! Multi-head self-attention over several levels without a mask tensor.
//!
//! The queries of a level meet exactly the keys their mask allows, tile by tile; no score matrix
//! outlives its tile of [`TILE_QUERIES`] queries, in the forward and in the backward pass.

use super::fresh::zeros;
use super::matmul::{Mat, matmul};
use super::vector::{exp, max, sum, vectorized};
use super::{TokenLayout, has_kernels, output, plain, values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use gemm::Parallelism;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
#[cfg(feature = "cuda")]
use {super::cuda, candle_core::CudaStorage};

/// Queries whose scores exist at one time: a thread holds at most this many rows of scores.
const TILE_QUERIES: usize = 64;

/// Which levels a level attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// Itself and every coarser level (the paper's default).
    #[default]
    Causal,
    /// Every level.
    None,
    /// Itself only.
    #[serde(rename = "self")]
    Own,
}

impl Mask {
    /// The levels that `level` attends to; both counted from the coarsest.
    pub fn keys(self, level: usize, levels: usize) -> Range<usize> {
        match self {
            Self::Causal => 0..level + 1,
            Self::None => 0..levels,
            Self::Own => level..level + 1,
        }
    }
}

/// `softmax(Q K^T / sqrt(width / heads)) V` per head; `qkv` is `(rows, 3 * width)` f32 with the
/// queries, keys and values side by side, the result is `(rows, width)`.
///
/// # Errors
/// When `qkv` does not fit `layout` or `heads`.
pub fn attention(qkv: &Tensor, layout: &TokenLayout, heads: usize, mask: Mask) -> Result<Tensor> {
    let (rows, columns) = qkv.dims2()?;
    if rows != layout.rows() || columns % (3 * heads) != 0 {
        bail!("attention: qkv {:?}, {heads} heads, {layout:?}", qkv.dims())
    }
    if !has_kernels(qkv) {
        return plain::attention(qkv, layout, heads, mask);
    }
    qkv.contiguous()?.apply_op1(Attention { layout: layout.clone(), heads, mask })
}

/// dL/dqkv of [`attention`].
pub(crate) fn attention_backward(
    qkv: &Tensor,
    grad: &Tensor,
    layout: &TokenLayout,
    heads: usize,
    mask: Mask,
) -> Result<Tensor> {
    let op = Attention { layout: layout.clone(), heads, mask };
    qkv.apply_op2_no_bwd(&grad.contiguous()?, &AttentionBackward(op))
}

#[derive(Clone)]
struct Attention {
    layout: TokenLayout,
    heads: usize,
    mask: Mask,
}

/// One sample's tokens of all levels for one head, gathered without gaps.
struct Head {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// A tile of queries and the keys they see, as token positions inside the sample.
struct Scope {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Attention {
    fn scopes(&self) -> Vec<Scope> {
        let mut scopes = Vec::new();
        for level in 0..self.layout.levels() {
            let seen = self.mask.keys(level, self.layout.levels());
            let keys = self.layout.tokens_in(0..seen.start)..self.layout.tokens_in(0..seen.end);
            let start = self.layout.tokens_in(0..level);
            let end = start + self.layout.tokens(level);
            for tile in (start..end).step_by(TILE_QUERIES) {
                let queries = tile..end.min(tile + TILE_QUERIES);
                scopes.push(Scope { queries, keys: keys.clone() });
            }
        }
        scopes
    }

    /// The rows of `sample`, level by level.
    fn rows(&self, sample: usize) -> impl Iterator<Item = usize> {
        (0..self.layout.levels()).flat_map(move |level| self.layout.sample_rows(level, sample))
    }

    /// Columns `[column, column + dim)` of a sample's rows of `data`.
    fn gather(
        &self,
        data: &[f32],
        sample: usize,
        stride: usize,
        columns: Range<usize>,
    ) -> Vec<f32> {
        let tokens = self.layout.tokens_in(0..self.layout.levels());
        let mut gathered = Vec::with_capacity(tokens * columns.len());
        for row in self.rows(sample) {
            gathered.extend_from_slice(&data[row * stride..][columns.clone()]);
        }
        gathered
    }

    fn head(&self, qkv: &[f32], sample: usize, head: usize, width: usize) -> Head {
        let dim = width / self.heads;
        let part = |i: usize| {
            let start = i * width + head * dim;
            self.gather(qkv, sample, 3 * width, start..start + dim)
        };
        Head { queries: part(0), keys: part(1), values: part(2) }
    }

    /// Runs `task(sample, head)` over all of them in parallel.
    fn for_each_head(&self, task: impl Fn(usize, usize) + Sync) {
        (0..self.layout.batch() * self.heads)
            .into_par_iter()
            .for_each(|i| task(i / self.heads, i % self.heads));
    }
}

impl Head {
    /// softmax(scale Q K^T) of one scope, `(queries, keys)`, into `scores`.
    fn probabilities(&self, scope: &Scope, dim: usize, scores: &mut Vec<f32>) {
        let (n, m) = (scope.queries.len(), scope.keys.len());
        scores.resize(n * m, 0.0);
        let scale = (dim as f32).sqrt().recip();
        let queries = rows(&self.queries, &scope.queries, dim);
        let keys = rows(&self.keys, &scope.keys, dim);
        matmul(scores, queries, keys.t(), scale, false, Parallelism::None);
        vectorized(
            #[inline(always)]
            || {
                for row in scores.chunks_exact_mut(m) {
                    softmax(row);
                }
            },
        );
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (count, columns) = layout.shape().dims2()?;
        let (width, dim) = (columns / 3, columns / 3 / self.heads);
        let qkv = values(self.name(), qkv, layout)?;
        let scopes = self.scopes();
        let mut out = zeros(count * width);
        let columns = Columns::new(&mut out, width);
        self.for_each_head(|sample, index| {
            let head = self.head(qkv, sample, index, width);
            let mut result = vec![0f32; head.queries.len()];
            let mut scores = Vec::new();
            for scope in &scopes {
                head.probabilities(scope, dim, &mut scores);
                let p = Mat::new(&scores, scope.queries.len(), scope.keys.len());
                let v = rows(&head.values, &scope.keys, dim);
                let target = &mut result[span(&scope.queries, dim)];
                matmul(target, p, v, 1.0, false, Parallelism::None);
            }
            // SAFETY: each (sample, head) owns its rows and columns of the output.
            unsafe { columns.scatter(&result, self.rows(sample), index * dim, dim) };
        });
        output(out, (count, width))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::attention(&self.layout, self.heads, self.mask, (qkv, layout))
    }

    fn bwd(&self, qkv: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(attention_backward(qkv, grad, &self.layout, self.heads, self.mask)?))
    }
}

/// dL/dqkv, with the probabilities computed again instead of kept.
struct AttentionBackward(Attention);

impl CustomOp2 for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention-backward"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let columns = layout.shape().dims2()?.1;
        let (width, dim) = (columns / 3, columns / 3 / self.0.heads);
        let qkv = values(self.name(), qkv, layout)?;
        let grad = values(self.name(), grad, grad_layout)?;
        let scopes = self.0.scopes();
        let mut out = zeros(qkv.len());
        let columns = Columns::new(&mut out, 3 * width);
        self.0.for_each_head(|sample, index| {
            let head = self.0.head(qkv, sample, index, width);
            let grad = self.0.gather(grad, sample, width, index * dim..(index + 1) * dim);
            let parts = head.backward(&grad, &scopes, dim);
            for (i, part) in parts.iter().enumerate() {
                let column = i * width + index * dim;
                // SAFETY: each (sample, head) owns its rows and columns of the output.
                unsafe { columns.scatter(part, self.0.rows(sample), column, dim) };
            }
        });
        output(out, layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        qkv: &CudaStorage,
        layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (qkv, grad) = ((qkv, layout), (grad, grad_layout));
        cuda::attention_backward(&self.0.layout, self.0.heads, self.0.mask, qkv, grad)
    }
}

impl Head {
    /// Gradients of queries, keys and values, each `(tokens, dim)`.
    fn backward(&self, grad: &[f32], scopes: &[Scope], dim: usize) -> [Vec<f32>; 3] {
        let zeros = || vec![0f32; self.queries.len()];
        let (mut dq, mut dk, mut dv) = (zeros(), zeros(), zeros());
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        let scale = (dim as f32).sqrt().recip();
        for scope in scopes {
            let (n, m) = (scope.queries.len(), scope.keys.len());
            self.probabilities(scope, dim, &mut p);
            let g = rows(grad, &scope.queries, dim);
            let keys = span(&scope.keys, dim);
            let pt = Mat::new(&p, n, m).t();
            matmul(&mut dv[keys.clone()], pt, g, 1.0, true, Parallelism::None);
            ds.resize(n * m, 0.0);
            let v = rows(&self.values, &scope.keys, dim);
            matmul(&mut ds, g, v.t(), 1.0, false, Parallelism::None);
            vectorized(
                #[inline(always)]
                || {
                    for (ds, p) in ds.chunks_exact_mut(m).zip(p.chunks_exact(m)) {
                        softmax_backward(ds, p);
                    }
                },
            );
            let ds = Mat::new(&ds, n, m);
            let dq = &mut dq[span(&scope.queries, dim)];
            matmul(dq, ds, rows(&self.keys, &scope.keys, dim), scale, false, Parallelism::None);
            let q = rows(&self.queries, &scope.queries, dim);
            matmul(&mut dk[keys], ds.t(), q, scale, true, Parallelism::None);
        }
        [dq, dk, dv]
    }
}

/// Shared access to a matrix whose writers own disjoint columns.
struct Columns {
    data: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: `scatter`'s contract keeps concurrent writes disjoint.
unsafe impl Sync for Columns {}

impl Columns {
    fn new(data: &mut [f32], stride: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), stride }
    }

    /// Writes consecutive pieces of `dim` values to `column` of each row.
    ///
    /// # Safety
    /// No other thread may write the same rows and columns, and the matrix must be alive.
    unsafe fn scatter(
        &self,
        source: &[f32],
        rows: impl Iterator<Item = usize>,
        column: usize,
        dim: usize,
    ) {
        for (row, piece) in rows.zip(source.chunks_exact(dim)) {
            let start = row * self.stride + column;
            assert!(start + dim <= self.len, "attention: row {row} is outside the output");
            // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), self.data.add(start), dim) };
        }
    }
}

fn span(tokens: &Range<usize>, dim: usize) -> Range<usize> {
    tokens.start * dim..tokens.end * dim
}

fn rows<'a>(data: &'a [f32], tokens: &Range<usize>, dim: usize) -> Mat<'a> {
    Mat::new(&data[span(tokens, dim)], tokens.len(), dim)
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let max = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let norm = sum([row], |[e]| e).recip();
    for x in row.iter_mut() {
        *x *= norm;
    }
}

/// `ds = p (ds - sum(p ds))`, in place.
#[inline(always)]
fn softmax_backward(ds: &mut [f32], p: &[f32]) {
    let inner = sum([p, ds], |[p, ds]| p * ds);
    for (ds, p) in ds.iter_mut().zip(p) {
        *ds = p * (*ds - inner);
    }
}
