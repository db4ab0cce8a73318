//! Which class each image of a set has.

use crate::error::{Result, SampleError};
use lapflow_model::flow::image_rng;
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Keeps the draw of random labels apart from the noise of the same seed.
const LABEL_STREAMS: u64 = 0x6c61_6265;

/// How classes are dealt out; a label depends on seed and index alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// Every class in turn.
    Balanced,
    /// Uniformly at random.
    Random,
    /// The null class.
    Null,
    /// These classes in turn.
    Given(Vec<u32>),
}

impl Labels {
    /// `balanced`, `random`, `null`, or names or numbers of `classes`, separated by commas; a name
    /// that has a comma itself stands alone, or in double quotes.
    ///
    /// # Errors
    /// Names the item that is no class.
    pub fn parse(text: &str, classes: &[String]) -> Result<Self> {
        let class = |item: &str| {
            let named = classes.iter().position(|class| class == item);
            let label = named.or_else(|| item.parse().ok()).filter(|label| *label < classes.len());
            let unknown = || SampleError::setting("labels", format!("there is no class `{item}`"));
            label.map(|label| label as u32).ok_or_else(unknown)
        };
        match text {
            "balanced" => Ok(Self::Balanced),
            "random" => Ok(Self::Random),
            "null" => Ok(Self::Null),
            name if classes.iter().any(|class| class == name) => {
                class(name).map(|label| Self::Given(vec![label]))
            }
            list => {
                let mut reader = csv::ReaderBuilder::new();
                let reader = reader.has_headers(false).from_reader(list.as_bytes());
                let record = reader.into_records().next().unwrap_or_else(|| Ok(Default::default()));
                let record = record.map_err(|e| SampleError::setting("labels", e.to_string()))?;
                record.iter().map(class).collect::<Result<_>>().map(Self::Given)
            }
        }
    }

    /// The label of image `index` under `seed`; `None` for the null class or without classes.
    pub fn label(&self, seed: u64, index: u64, classes: usize) -> Option<u32> {
        match self {
            _ if classes == 0 => None,
            Labels::Null => None,
            Labels::Balanced => Some((index % classes as u64) as u32),
            Labels::Random => {
                let mut rng = image_rng(seed ^ LABEL_STREAMS, index);
                Some(rng.random_range(0..classes as u32))
            }
            Labels::Given(labels) if labels.is_empty() => None,
            Labels::Given(labels) => Some(labels[(index % labels.len() as u64) as usize]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_dealt_as_asked() {
        let classes = ["cat", "owl", "7"].map(String::from);
        let dealt = |text: &str| {
            let labels = Labels::parse(text, &classes).unwrap();
            (0..6).map(|i| labels.label(4, i, 3)).collect::<Vec<_>>()
        };
        assert_eq!(dealt("balanced"), [0, 1, 2, 0, 1, 2].map(Some));
        assert_eq!(dealt("owl,0"), [1, 0, 1, 0, 1, 0].map(Some));
        assert_eq!(dealt("7"), [Some(2); 6]);
        assert_eq!(dealt("null"), [None; 6]);
        assert_eq!(dealt("random"), dealt("random"));
        let random = Labels::Random;
        let count = |class| (0..3000).filter(|i| random.label(4, *i, 3) == Some(class)).count();
        assert!((0..3).all(|class| (900..1100).contains(&count(class))));
        let fishes = ["tench, Tinca tinca", "goldfish"].map(String::from);
        for (text, labels) in
            [("tench, Tinca tinca", vec![0]), ("goldfish,\"tench, Tinca tinca\"", vec![1, 0])]
        {
            assert_eq!(Labels::parse(text, &fishes).unwrap(), Labels::Given(labels), "{text}");
        }
        let error = Labels::parse("cat,dog", &classes).unwrap_err().to_string();
        assert!(error.contains("no class `dog`"), "{error}");
    }
}
