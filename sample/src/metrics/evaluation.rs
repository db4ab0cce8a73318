//! Scores of one image set against another.

use super::extractor::{Extractor, ExtractorIdentity};
use super::frechet::frechet_distance;
use super::inception_score::Score;
use super::kid::{Kid, KidConfig, kid};
use super::neighbours::{PrecisionRecall, precision_recall};
use super::statistics::Gaussian;
use super::summary::{Needs, Summary};
use crate::error::{Result, SampleError};
use serde::{Deserialize, Serialize};

/// Fewer images than these make a Frechet distance mostly bias.
pub const IMAGES_MIN: usize = 10_000;

/// The "format" of images that were decoded from a dataset's latents.
pub const DECODED_LATENTS: &str = "decoded latents";

/// A score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Frechet Inception Distance.
    Fid,
    /// FID over spatial features.
    Sfid,
    /// Inception Score.
    Is,
    /// Improved precision and recall.
    Pr,
    /// Kernel Inception Distance.
    Kid,
    /// The Frechet distance between autoencoder latents: not FID, and not to be called so.
    FdLatent,
}

/// What to score and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalConfig {
    /// The scores; none for all that the feature space is made for, but KID.
    pub metrics: Vec<Metric>,
    /// Images that go through the network together.
    pub batch: usize,
    /// Scores sets below [`IMAGES_MIN`] all the same.
    pub allow_few: bool,
    /// KID's subsets.
    pub kid: KidConfig,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { metrics: Vec::new(), batch: 32, allow_few: false, kid: KidConfig::default() }
    }
}

/// Scores and what they are scores of.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Frechet Inception Distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<f64>,
    /// FID over spatial features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sfid: Option<f64>,
    /// Inception Score of the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception_score: Option<Score>,
    /// Improved precision and recall.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub precision_recall: Option<PrecisionRecall>,
    /// Kernel Inception Distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<Kid>,
    /// Frechet distance between latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_latent: Option<f64>,
    /// The feature space.
    pub extractor: ExtractorIdentity,
    /// The scored set.
    pub samples: Summary,
    /// What it was compared with.
    pub reference: Summary,
    /// What a reader of these scores has to know.
    pub warnings: Vec<String>,
}

impl EvalConfig {
    /// The scores to compute in `extractor`'s space.
    ///
    /// # Errors
    /// For a score that is defined in another space.
    pub fn metrics(&self, extractor: &Extractor) -> Result<Vec<Metric>> {
        let inception = matches!(extractor, Extractor::Inception(_));
        if self.metrics.is_empty() {
            let all = [Metric::Fid, Metric::Sfid, Metric::Is, Metric::Pr];
            return Ok(if inception { all.to_vec() } else { vec![Metric::FdLatent] });
        }
        for metric in &self.metrics {
            if (*metric == Metric::FdLatent) == inception {
                let reason =
                    format!("{metric:?} is not defined over {}", extractor.identity().name);
                return Err(SampleError::setting("metrics", reason));
            }
        }
        Ok(self.metrics.clone())
    }

    /// What the summaries of both sides have to keep.
    ///
    /// # Errors
    /// As [`EvalConfig::metrics`].
    pub fn needs(&self, extractor: &Extractor) -> Result<Needs> {
        let metrics = self.metrics(extractor)?;
        let rows = metrics.contains(&Metric::Pr) || metrics.contains(&Metric::Kid);
        let images_min = if self.allow_few { 0 } else { IMAGES_MIN };
        Ok(Needs { rows, spatial: metrics.contains(&Metric::Sfid), images_min })
    }
}

/// Scores `samples` against `reference`.
///
/// # Errors
/// For fewer than [`IMAGES_MIN`] images unless allowed, a score that a side lacks the data for,
/// and statistics of another dimension.
pub fn evaluate(
    samples: Summary,
    reference: Summary,
    extractor: &Extractor,
    config: &EvalConfig,
) -> Result<Evaluation> {
    let needs = config.needs(extractor)?;
    for side in [&samples, &reference] {
        side.images.map_or(Ok(()), |images| needs.enough(&side.source, images))?;
    }
    let warnings = warnings(&samples, &reference);
    one_space(&samples, &reference)?;
    let mut scores = Evaluation {
        fid: None,
        sfid: None,
        inception_score: None,
        precision_recall: None,
        kid: None,
        fd_latent: None,
        extractor: extractor.identity(),
        samples,
        reference,
        warnings,
    };
    let (samples, reference) = (&scores.samples, &scores.reference);
    let dims = samples.gaussian.mean.len();
    for metric in config.metrics(extractor)? {
        let distance = || frechet_distance(&samples.gaussian, &reference.gaussian);
        match metric {
            Metric::Fid => scores.fid = Some(distance()?),
            Metric::FdLatent => scores.fd_latent = Some(distance()?),
            Metric::Sfid => {
                let (a, b) = (spatial(samples)?, spatial(reference)?);
                scores.sfid = Some(frechet_distance(a, b)?);
            }
            Metric::Is => {
                let missing = || lacks(samples, "images, which the Inception Score needs");
                scores.inception_score = Some(samples.score.ok_or_else(missing)?);
            }
            Metric::Pr => {
                let pair = precision_recall(rows(samples)?, rows(reference)?, dims)?;
                scores.precision_recall = Some(pair);
            }
            Metric::Kid => {
                scores.kid = Some(kid(rows(samples)?, rows(reference)?, dims, &config.kid)?);
            }
        }
    }
    Ok(scores)
}

/// Latents of images of another size are no points of the same space.
fn one_space(samples: &Summary, reference: &Summary) -> Result<()> {
    let of = |side: &Summary| {
        let size = side.content.as_ref().map(|c| format!(" from {}x{}", c.width, c.height));
        format!("{} features an image{}", side.gaussian.mean.len(), size.unwrap_or_default())
    };
    if samples.gaussian.mean.len() == reference.gaussian.mean.len() {
        return Ok(());
    }
    let (ours, theirs) = (of(reference), of(samples));
    let reason = format!(
        "{ours}, {} has {theirs}: images of one size are needed (`lapflow ingest --size`)",
        samples.source.display()
    );
    Err(SampleError::file(&reference.source, reason))
}

fn spatial(side: &Summary) -> Result<&Gaussian> {
    side.spatial.as_ref().ok_or_else(|| lacks(side, "spatial statistics, which sFID needs"))
}

fn rows(side: &Summary) -> Result<&[f32]> {
    let missing = || lacks(side, "images, which precision, recall and KID need");
    side.rows.as_deref().ok_or_else(missing)
}

fn lacks(side: &Summary, what: &str) -> SampleError {
    SampleError::file(&side.source, format!("holds no {what}"))
}

fn warnings(samples: &Summary, reference: &Summary) -> Vec<String> {
    let mut warnings = Vec::new();
    for side in [samples, reference] {
        let source = side.source.display();
        match side.images {
            Some(count) if count < IMAGES_MIN => {
                warnings.push(format!(
                    "{source}: only {count} images; do not compare with published scores"
                ));
            }
            Some(_) => {}
            None => {
                warnings.push(format!("{source}: does not say which images and network it is of"))
            }
        }
        let decoded =
            |content: &crate::images::SetContent| content.formats.contains_key(DECODED_LATENTS);
        if side.content.as_ref().is_some_and(decoded) {
            warnings.push(format!(
                "{source}: its images were decoded from latents, they are not the originals"
            ));
        }
        let lossy = |content: &&crate::images::SetContent| {
            content.formats.contains_key("JPEG") || content.formats.contains_key("WebP")
        };
        if side.content.as_ref().is_some_and(|content| lossy(&content)) {
            warnings.push(format!("{source}: holds lossy files, which move Frechet distances"));
        }
        if let Some(content) = side.content.as_ref().filter(|content| !content.left_out.is_empty())
        {
            warnings.push(format!("{source}: left out: {}", content.left_out));
        }
    }
    let size =
        |side: &Summary| side.content.as_ref().map(|content| (content.width, content.height));
    if let (Some(a), Some(b)) = (size(samples), size(reference))
        && a != b
    {
        warnings.push(format!("samples are {}x{}, the reference {}x{}", a.0, a.1, b.0, b.1));
    }
    warnings
}
