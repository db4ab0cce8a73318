//! What enters the transformer: patches with positions, times and labels.

use super::config::{Geometry, ModelConfig};
use super::layers::Linear;
use crate::error::Result;
use crate::params::{Init, Scope};
use candle_core::{D, Device, Tensor};

const TIME_CHANNELS: usize = 256;
const MAX_PERIOD: f64 = 10_000.0;

/// `(b, c, h, w)` to `(b * tokens, c * patch * patch)`, a row's values in (c, y, x) order.
pub fn patchify(x: &Tensor, patch: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (rows, cols) = (h / patch, w / patch);
    let x = x.reshape((b, c, rows, patch, cols, patch))?; // (b, c, rows, y, cols, x)
    let x = x.permute([0, 2, 4, 1, 3, 5])?; //               (b, rows, cols, c, y, x)
    Ok(x.reshape((b * rows * cols, c * patch * patch))?)
}

/// `(b * tokens, patch * patch * c)`, a row's values in (y, x, c) order, to `(b, c, h, w)`.
pub fn unpatchify(x: &Tensor, patch: usize, size: (usize, usize), c: usize) -> Result<Tensor> {
    let (rows, cols) = (size.0 / patch, size.1 / patch);
    let b = x.dims2()?.0 / (rows * cols);
    let x = x.reshape(vec![b, rows, cols, patch, patch, c])?; // (b, rows, cols, y, x, c)
    let x = x.permute([0, 5, 1, 3, 2, 4])?; //                   (b, c, rows, y, cols, x)
    Ok(x.reshape((b, c, size.0, size.1))?)
}

/// Fixed 2-D sine-cosine positions of a `rows x cols` grid, `(rows * cols, width)` f32: the first
/// half of the channels encodes the column, the second the row, each as sines then cosines of
/// `position / 10000^(i / (width/4))` (as in DiT and MAE).
pub fn positions(rows: usize, cols: usize, width: usize, device: &Device) -> Result<Tensor> {
    let quarter = width / 4;
    let angle =
        |position: usize, i: usize| position as f64 / MAX_PERIOD.powf(i as f64 / quarter as f64);
    let mut values = Vec::with_capacity(rows * cols * width);
    for row in 0..rows {
        for col in 0..cols {
            for position in [col, row] {
                values.extend((0..quarter).map(|i| angle(position, i).sin() as f32));
                values.extend((0..quarter).map(|i| angle(position, i).cos() as f32));
            }
        }
    }
    Ok(Tensor::from_vec(values, (rows * cols, width), device)?)
}

/// Time and label, as one conditioning vector and as tokens.
pub struct Condition {
    /// `(1, half of the channels)` f32, of the sinusoidal embedding.
    frequencies: Tensor,
    time: [Linear; 2],
    labels: Option<Tensor>,
    tokens: Option<CondTokens>,
    null_class: usize,
}

/// Projections of the condition tokens.
struct CondTokens {
    time: Linear,
    label: Option<Linear>,
}

impl Condition {
    /// Parameters `t_embedder`, `y_embedder` (its last row is the null class) and `cond_tokens`.
    pub fn new(scope: &Scope, config: &ModelConfig, geometry: &Geometry) -> Result<Self> {
        let (width, classes) = (config.width(), geometry.classes);
        let half = TIME_CHANNELS / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| (config.time_scale * MAX_PERIOD.powf(-(i as f64) / half as f64)) as f32)
            .collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), &scope.device())?;
        let normal = Init::Normal(0.02);
        let mlp = scope.at("t_embedder").at("mlp");
        let time = [
            Linear::new(&mlp.at(0), TIME_CHANNELS, width, normal)?,
            Linear::new(&mlp.at(2), width, width, normal)?,
        ];
        let table = scope.at("y_embedder").at("embedding_table");
        let labels =
            (classes > 0).then(|| table.get("weight", [classes + 1, width], normal)).transpose()?;
        let projection =
            |name: &str| Linear::new(&scope.at("cond_tokens").at(name), width, width, Init::Xavier);
        let tokens = config
            .cond_tokens
            .then(|| -> Result<_> {
                let label = (classes > 0).then(|| projection("label")).transpose()?;
                Ok(CondTokens { time: projection("time")?, label })
            })
            .transpose()?;
        Ok(Self { frequencies, time, labels, tokens, null_class: classes })
    }

    /// The conditioning vector `(b, width)` and the condition tokens `(b, n, width)`.
    ///
    /// `t` is `(b)` f32 in [0, 1]; `labels` `(b)` u32, absent for the null class.
    pub fn forward(&self, t: &Tensor, labels: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let time = self.time_vector(t)?;
        let label = match &self.labels {
            None => None,
            Some(table) => {
                let null = || Tensor::full(self.null_class as u32, t.dims1()?, t.device());
                Some(table.index_select(&labels.cloned().map_or_else(null, Ok)?, 0)?)
            }
        };
        let tokens = match &self.tokens {
            None => None,
            Some(tokens) => {
                let mut list = vec![tokens.time.forward(&time)?];
                if let (Some(projection), Some(label)) = (&tokens.label, &label) {
                    list.push(projection.forward(label)?);
                }
                Some(Tensor::stack(&list, 1)?)
            }
        };
        let vector = match label {
            Some(label) => (time + label)?,
            None => time,
        };
        Ok((vector, tokens))
    }

    /// MLP of the sinusoidal embedding (cosines first), `(b)` to `(b, width)`.
    fn time_vector(&self, t: &Tensor) -> Result<Tensor> {
        let angles = t.unsqueeze(1)?.broadcast_mul(&self.frequencies)?; // (b, half)
        let x = Tensor::cat(&[angles.cos()?, angles.sin()?], D::Minus1)?;
        self.time[1].forward(&self.time[0].forward(&x)?.silu()?)
    }
}
