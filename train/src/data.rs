//! What a dataset says of the network: its geometry, its normalization, what it mixes with.

use crate::config::Normalize;
use crate::error::{Result, TrainError};
use lapflow_model::net::Geometry;
use lapflow_model::normalization::Normalization;
use lapflow_store::{Dataset, Metadata};

/// The network's geometry for a dataset cut into `levels` levels.
pub fn geometry(metadata: &Metadata, levels: usize) -> Geometry {
    let finest = metadata.levels[0];
    Geometry {
        channels: finest.channels,
        height: finest.height,
        width: finest.width,
        levels,
        classes: metadata.classes.len(),
    }
}

/// The normalization of a dataset's latents.
///
/// The levels of a Laplacian pyramid are orthogonal and residuals have no mean, so the variance of
/// the full latents is the sum of the levels' variances, and their mean the coarsest level's.
///
/// # Errors
/// When the dataset is empty, or its autoencoder states no scale and shift.
pub fn normalization(dataset: &Dataset, from: Normalize) -> Result<Normalization> {
    if dataset.rows() == 0 {
        return Err(TrainError::Config(format!("{} holds no samples yet", dataset.uri())));
    }
    let channels = dataset.metadata().levels[0].channels;
    match from {
        Normalize::Autoencoder => {
            let identity = &dataset.metadata().autoencoder;
            let value = |key: &str| {
                identity[key].as_f64().map(|value| vec![value; channels]).ok_or_else(|| {
                    TrainError::Config(format!("the dataset's autoencoder states no {key}"))
                })
            };
            Ok(Normalization { shift: value("shift")?, scale: value("scale")? })
        }
        Normalize::Channel => {
            let levels = dataset.statistics().levels;
            let coarsest = &levels[levels.len() - 1];
            let deviation =
                |c: usize| levels.iter().map(|level| level[c].std.powi(2)).sum::<f64>().sqrt();
            let scale = |c| match deviation(c) {
                std if std > 0.0 && std.is_finite() => 1.0 / std,
                _ => 1.0,
            };
            Ok(Normalization {
                shift: coarsest.iter().map(|channel| channel.mean).collect(),
                scale: (0..channels).map(scale).collect(),
            })
        }
    }
}

/// Refuses a dataset whose latents or classes are not those of `first`.
///
/// # Errors
/// Names both identities.
pub fn check_mixable(first: &Dataset, other: &Dataset) -> Result<()> {
    let (a, b) = (first.metadata(), other.metadata());
    let differs = |what, first_side: String, here: String| TrainError::Mixed {
        what,
        uri: other.uri().into(),
        here,
        first: first_side,
        first_uri: first.uri().into(),
    };
    if a.autoencoder != b.autoencoder {
        let (a, b) = (a.autoencoder.to_string(), b.autoencoder.to_string());
        return Err(differs("the autoencoder", a, b));
    }
    if a.levels[0] != b.levels[0] {
        let (a, b) = (format!("{:?}", a.levels[0]), format!("{:?}", b.levels[0]));
        return Err(differs("the latents' shape", a, b));
    }
    if a.classes != b.classes {
        let list = |classes: &[String]| format!("[{}]", classes.join(", "));
        return Err(differs("the list of classes", list(&a.classes), list(&b.classes)));
    }
    Ok(())
}
