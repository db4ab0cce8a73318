//! One side of a comparison: what is kept of an image set, or read from saved statistics.

use super::extractor::{Extractor, ExtractorIdentity, Features};
use super::inception::Inception;
use super::inception_score::{InceptionScore, SPLIT_IMAGES, Score};
use super::statistics::{Gaussian, Statistics};
use crate::error::{Result, SampleError};
use crate::images::npy::{Element, Header};
use crate::images::npz::{NpzFile, write_arrays};
use crate::images::{ImageSet, SetContent};
use lapflow_ingest::RgbImage;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Features that saved statistics may have.
const DIMS_MAX: usize = 8192;

/// The member in which our own `.npz` files say what they are of.
const ORIGIN: &str = "lapflow";

/// What is known of one side.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Where it was read from.
    pub source: PathBuf,
    /// Images; `None` for statistics that do not say.
    pub images: Option<usize>,
    /// What the image set holds; `None` for statistics.
    pub content: Option<SetContent>,
    /// The feature space; `None` for statistics that do not say.
    pub extractor: Option<ExtractorIdentity>,
    /// Mean and covariance of the features.
    #[serde(skip)]
    pub gaussian: Gaussian,
    /// Mean and covariance of the spatial features.
    #[serde(skip)]
    pub spatial: Option<Gaussian>,
    /// The features themselves, where they were asked for.
    #[serde(skip)]
    pub rows: Option<Vec<f32>>,
    /// The Inception Score.
    #[serde(skip)]
    pub score: Option<Score>,
}

/// What a summary has to be of, and to keep beyond the Gaussian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Feature rows, for precision, recall and KID.
    pub rows: bool,
    /// Spatial features, for sFID.
    pub spatial: bool,
    /// Images, at least.
    pub images_min: usize,
}

impl Needs {
    /// # Errors
    /// When `source` has too few images for a score.
    pub fn enough(&self, source: &Path, images: usize) -> Result<()> {
        if images >= self.images_min {
            return Ok(());
        }
        let few = format!("{images} images are fewer than {}", self.images_min);
        Err(SampleError::file(source, format!("{few}: the score would be mostly bias")))
    }
}

/// What our own statistics say about themselves.
#[derive(Serialize, Deserialize)]
struct Origin {
    extractor: ExtractorIdentity,
    images: usize,
}

impl Summary {
    /// Summarises the images at `path`, or reads saved statistics; `progress` is told the number
    /// of images so far.
    ///
    /// An ADM reference file that holds both is read as statistics, unless rows are needed.
    ///
    /// # Errors
    /// When `path` is neither or has too few images (before any of them is looked at), an image is
    /// broken or of another size, a feature is not finite, or the statistics are of another
    /// feature space.
    pub fn read(
        path: &Path,
        extractor: &Extractor,
        needs: Needs,
        batch: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "npz") && path.is_file() {
            let npz = NpzFile::open(path)?;
            if npz.contains("mu") && !(needs.rows && npz.contains("arr_0")) {
                return Self::load(path, npz, &extractor.identity());
            }
        }
        let set = ImageSet::open(path)?;
        needs.enough(path, set.images())?;
        Self::of_batches(path, extractor, needs, progress, |each| set.for_batches(batch, each))
    }

    /// Summarises the images, of one size, that `feed` hands to the function it is given.
    ///
    /// # Errors
    /// When a feature is not finite, there is no image, and whatever `feed` returns.
    pub fn of_batches(
        path: &Path,
        extractor: &Extractor,
        needs: Needs,
        progress: &mut dyn FnMut(usize),
        feed: impl FnOnce(&mut dyn FnMut(&[RgbImage]) -> Result<()>) -> Result<SetContent>,
    ) -> Result<Self> {
        let mut gathered: Option<Gathered> = None;
        let mut images = 0;
        let content = feed(&mut |batch| {
            let features = extractor.features(batch)?;
            gathered.get_or_insert_with(|| Gathered::new(features.dims, needs)).push(features)?;
            images += batch.len();
            progress(images);
            Ok(())
        })?;
        let none = || SampleError::file(path, "holds no images");
        let gathered = gathered.ok_or_else(none)?;
        Ok(Self {
            source: path.to_path_buf(),
            images: Some(images),
            content: Some(content),
            extractor: Some(extractor.identity()),
            gaussian: gathered.statistics.gaussian()?,
            spatial: gathered.spatial.map(|spatial| spatial.gaussian()).transpose()?,
            rows: gathered.rows,
            score: gathered.score.map(|score| score.score()).transpose()?,
        })
    }

    fn load(path: &Path, mut npz: NpzFile, wanted: &ExtractorIdentity) -> Result<Self> {
        let origin = read_origin(path, &mut npz)?;
        if let Some(origin) = origin.as_ref().filter(|origin| origin.extractor != *wanted) {
            let (theirs, ours) = (&origin.extractor, wanted);
            let reason = format!(
                "holds statistics of {} (weights {}), not of {} (weights {})",
                theirs.name,
                theirs.weights_sha256.as_deref().unwrap_or("none"),
                ours.name,
                ours.weights_sha256.as_deref().unwrap_or("none")
            );
            return Err(SampleError::file(path, reason));
        }
        let spatial = npz.contains("mu_s").then(|| gaussian(path, &mut npz, "mu_s", "sigma_s"));
        Ok(Self {
            source: path.to_path_buf(),
            images: origin.as_ref().map(|origin| origin.images),
            content: None,
            extractor: origin.map(|origin| origin.extractor),
            gaussian: gaussian(path, &mut npz, "mu", "sigma")?,
            spatial: spatial.transpose()?,
            rows: None,
            score: None,
        })
    }

    /// Saves the statistics as ADM's reference files have them (`mu`, `sigma`, `mu_s`,
    /// `sigma_s`), with a member that names their feature space.
    ///
    /// # Errors
    /// When the file cannot be written, or the statistics' own origin is unknown.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (Some(extractor), Some(images)) = (self.extractor.clone(), self.images) else {
            return Err(SampleError::file(&self.source, "does not say what its statistics are of"));
        };
        let origin = serde_json::to_vec(&Origin { extractor, images })
            .map_err(|e| SampleError::file(path, e))?;
        let bytes = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut arrays: Vec<(&str, Header, Vec<u8>)> = Vec::new();
        let named =
            [("mu", "sigma", Some(&self.gaussian)), ("mu_s", "sigma_s", self.spatial.as_ref())];
        for (mean, covariance, gaussian) in named {
            let Some(gaussian) = gaussian else { continue };
            let dims = gaussian.mean.len();
            let header = |shape| Header { element: Element::F64, shape };
            arrays.push((mean, header(vec![dims]), bytes(&gaussian.mean)));
            arrays.push((covariance, header(vec![dims, dims]), bytes(&gaussian.covariance)));
        }
        let header = Header { element: Element::U8, shape: vec![origin.len()] };
        arrays.push((ORIGIN, header, origin));
        let arrays: Vec<(&str, Header, &[u8])> =
            arrays.iter().map(|(name, header, data)| (*name, header.clone(), &data[..])).collect();
        write_arrays(path, &arrays)
    }
}

fn read_origin(path: &Path, npz: &mut NpzFile) -> Result<Option<Origin>> {
    if !npz.contains(ORIGIN) {
        return Ok(None);
    }
    let (_, values) = npz.floats(ORIGIN, 1 << 16)?;
    let bytes: Vec<u8> = values.iter().map(|v| *v as u8).collect();
    let origin = serde_json::from_slice(&bytes);
    origin.map(Some).map_err(|e| SampleError::file(path, format!("{ORIGIN}: {e}")))
}

fn gaussian(path: &Path, npz: &mut NpzFile, mean: &str, covariance: &str) -> Result<Gaussian> {
    let (_, mu) = npz.floats(mean, DIMS_MAX)?;
    let (shape, sigma) = npz.floats(covariance, DIMS_MAX * DIMS_MAX)?;
    if shape != [mu.len(), mu.len()] {
        let reason = format!("{covariance} has shape {shape:?} beside {} in {mean}", mu.len());
        return Err(SampleError::file(path, reason));
    }
    Ok(Gaussian { mean: mu, covariance: sigma })
}

/// What is gathered batch by batch.
struct Gathered {
    statistics: Statistics,
    spatial: Option<Statistics>,
    rows: Option<Vec<f32>>,
    score: Option<InceptionScore>,
}

impl Gathered {
    fn new(dims: usize, needs: Needs) -> Self {
        Self {
            statistics: Statistics::new(dims),
            spatial: needs.spatial.then(|| Statistics::new(Inception::SPATIAL)),
            rows: needs.rows.then(Vec::new),
            score: None,
        }
    }

    fn push(&mut self, features: Features) -> Result<()> {
        self.statistics.push(&features.rows)?;
        if let (Some(statistics), Some(rows)) = (&mut self.spatial, &features.spatial) {
            statistics.push(rows)?;
        }
        if let Some(logits) = &features.logits {
            let new = || InceptionScore::new(Inception::CLASSES, SPLIT_IMAGES);
            self.score.get_or_insert_with(new).push(logits);
        }
        if let Some(rows) = &mut self.rows {
            rows.extend(features.rows);
        }
        Ok(())
    }
}
