//! Samples beside what is nearest to them in the training set: has the model learned by heart?

use crate::commands::Context;
use crate::commands::eval::dataset::raw_levels;
use crate::pictures::of_images;
use anyhow::Result;
use candle_core::Tensor;
use futures::{StreamExt, TryStreamExt};
use image::DynamicImage;
use lapflow_model::pyramid;
use lapflow_report::{Figure, PictureRow, Zoom};
use lapflow_sample::Generator;
use lapflow_store::Dataset;

/// Rows of the dataset that are searched, in its (shuffled) order.
const SEARCHED_ROWS_MAX: usize = 20_000;
/// Rows that are compared at once.
const CHUNK_ROWS: usize = 256;

/// Sets each sample above the nearest training image, by the squared distance of normalized
/// latents; `samples` are `(n, c, h, w)` and `pictures` what they decode to.
pub fn neighbours(
    generator: &Generator,
    dataset: &Dataset,
    samples: &Tensor,
    pictures: Vec<DynamicImage>,
    context: &Context,
) -> Result<Figure> {
    let mut nearest = Nearest::new(samples)?;
    let rows = dataset.scan().take(SEARCHED_ROWS_MAX);
    let mut chunks = Box::pin(rows.try_chunks(CHUNK_ROWS));
    let mut searched = 0;
    while let Some(rows) = context.runtime.block_on(chunks.next()) {
        let rows = rows?;
        let raw = raw_levels(&rows, dataset.metadata(), context)?;
        let latents = pyramid::merge(&generator.card().normalization.apply(&raw)?)?;
        nearest.search(&latents)?;
        searched += rows.len();
    }
    let found = generator.decode(&Tensor::stack(&nearest.latents, 0)?)?;
    let row = |label: &str, pictures| PictureRow { label: label.into(), pictures };
    Ok(Figure {
        caption: format!(
            "Samples above the training image nearest to them, by the distance of their latents, \
             of {searched} of {} images",
            dataset.rows()
        ),
        rows: vec![row("sample", pictures), row("nearest", of_images(generator, &found)?)],
        zoom: Zoom::Smooth,
    })
}

/// The nearest latents so far of each query.
struct Nearest {
    /// (queries, values).
    queries: Tensor,
    distances: Vec<f32>,
    /// (c, h, w) each.
    latents: Vec<Tensor>,
}

impl Nearest {
    fn new(queries: &Tensor) -> Result<Self> {
        let count = queries.dim(0)?;
        Ok(Self {
            queries: queries.flatten_from(1)?,
            distances: vec![f32::INFINITY; count],
            latents: (0..count).map(|i| queries.get(i)).collect::<candle_core::Result<_>>()?,
        })
    }

    fn search(&mut self, rows: &Tensor) -> Result<()> {
        let flat = rows.flatten_from(1)?;
        // |q - r|^2 less |q|^2, which is the same for all rows.
        let products = self.queries.matmul(&flat.t()?)?;
        let norms = flat.sqr()?.sum(1)?;
        let distances = norms.unsqueeze(0)?.broadcast_sub(&(products * 2.0)?)?;
        for (i, row) in distances.to_vec2::<f32>()?.into_iter().enumerate() {
            for (at, distance) in row.into_iter().enumerate() {
                if distance < self.distances[i] {
                    self.distances[i] = distance;
                    self.latents[i] = rows.get(at)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_nearest_row_is_found_in_any_chunk() {
        let rows: Vec<f32> = (0..40).map(|i| (i * i % 17) as f32 + 0.01 * i as f32).collect();
        let rows = Tensor::from_vec(rows, (10, 1, 2, 2), &Device::Cpu).unwrap();
        let queries = (rows.narrow(0, 3, 5).unwrap() + 0.001).unwrap();
        let mut nearest = Nearest::new(&queries).unwrap();
        for chunk in [rows.narrow(0, 0, 6).unwrap(), rows.narrow(0, 6, 4).unwrap()] {
            nearest.search(&chunk).unwrap();
        }
        let found = Tensor::stack(&nearest.latents, 0).unwrap();
        let difference = (found - rows.narrow(0, 3, 5).unwrap()).unwrap().abs().unwrap();
        assert_eq!(difference.dtype(), DType::F32);
        assert_eq!(difference.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
