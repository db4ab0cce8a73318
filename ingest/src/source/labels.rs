//! Label files.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::error::{IngestError, Result};

/// Labels by key, and the names of the classes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) by_key: HashMap<String, u32>,
    pub(super) classes: Vec<String>,
}

/// A label as written: a class number or a class name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u32),
    Name(String),
}

/// The JSON layouts that are read.
#[derive(Deserialize)]
#[serde(untagged)]
enum Json {
    /// `{"a/b.png": 3, ..}` or `{"a/b.png": "tabby", ..}`.
    Map(HashMap<String, Written>),
    /// EDM's `dataset.json`: `{"labels": [["a/b.png", 3], ..]}`, or `null` for none.
    Edm { labels: Option<Vec<(String, Written)>> },
}

/// Reads the label file at `path`: JSON (EDM's `dataset.json`, or a map from key to label) or
/// CSV (`key,label` lines, with or without a header whose second column is `label`). Labels are
/// class numbers, or class names that are numbered in sorted order.
pub(super) fn read(path: &Path) -> Result<Labels> {
    let name = path.display().to_string();
    let content = fs::read(path).map_err(|error| IngestError::labels(&name, error))?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => from_json(&name, &content),
        Some("csv") => from_csv(&name, &content),
        _ => Err(IngestError::labels(&name, "it is neither .json nor .csv")),
    }
}

pub(super) fn from_json(name: &str, content: &[u8]) -> Result<Labels> {
    let json: Json = serde_json::from_slice(content).map_err(|_| {
        let reason = "it is neither EDM's {\"labels\": [[key, label], ..]} nor {key: label, ..}";
        IngestError::labels(name, reason)
    })?;
    match json {
        Json::Edm { labels } => number(name, labels.unwrap_or_default()),
        Json::Map(map) => number(name, map.into_iter().collect()),
    }
}

fn from_csv(name: &str, content: &[u8]) -> Result<Labels> {
    let text = std::str::from_utf8(content).map_err(|error| IngestError::labels(name, error))?;
    let mut written = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (key, label) = line
            .rsplit_once(',')
            .ok_or_else(|| IngestError::labels(name, format!("line {} has no comma", index + 1)))?;
        let [key, label] = [key, label].map(|field| field.trim().trim_matches('"'));
        if index == 0 && label.eq_ignore_ascii_case("label") {
            continue;
        }
        let label = label.parse().map_or_else(|_| Written::Name(label.to_owned()), Written::Number);
        written.push((key.to_owned(), label));
    }
    number(name, written)
}

/// Numbers class names in sorted order; numbers stand for themselves.
fn number(name: &str, written: Vec<(String, Written)>) -> Result<Labels> {
    let mut names: Vec<String> = written
        .iter()
        .filter_map(|(_, label)| match label {
            Written::Name(class) => Some(class.clone()),
            Written::Number(_) => None,
        })
        .collect();
    let named = names.len();
    if named != 0 && named != written.len() {
        return Err(IngestError::labels(name, "it mixes class numbers and class names"));
    }
    names.sort_unstable();
    names.dedup();
    let mut labels = Labels { by_key: HashMap::with_capacity(written.len()), classes: names };
    for (key, label) in written {
        let label = match label {
            Written::Number(number) => number,
            Written::Name(class) => labels.classes.partition_point(|name| *name < class) as u32,
        };
        if labels.by_key.insert(key.clone(), label).is_some_and(|before| before != label) {
            return Err(IngestError::labels(name, format!("`{key}` has two labels")));
        }
    }
    if labels.classes.is_empty() {
        labels.classes = super::numbered_classes(&name, labels.by_key.values().copied())?;
    }
    Ok(labels)
}
