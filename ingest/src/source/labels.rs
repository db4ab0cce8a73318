//! Labels: what label files say, and how what is written becomes a class.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Listed;
use crate::error::{IngestError, Result};

/// Labels by key, and the names of the classes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) by_key: HashMap<String, u32>,
    pub(super) classes: Vec<String>,
    /// What was made of the file, where that was not plain, in words for the user.
    pub(super) notes: Vec<String>,
}

/// A label as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// Withheld: empty, null, or a negative number as Hugging Face writes it.
    None,
    /// A class number.
    Number(u32),
    /// A class name.
    Name(String),
}

impl Written {
    /// The label that `text` is: a whole number is a class number, another word a class name.
    ///
    /// # Errors
    /// Numbers that are not whole, in words.
    pub(super) fn of_text(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match (text, text.parse::<i64>(), text.parse::<f64>()) {
            ("", ..) => Ok(Self::None),
            (_, Ok(number), _) => Self::of_integer(number),
            // Words such as `nan` and `infinity` may be classes.
            (_, _, Ok(number))
                if text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) =>
            {
                Self::of_number(number)
            }
            _ => Ok(Self::Name(text.to_owned())),
        }
    }

    /// The label that a whole number is.
    ///
    /// # Errors
    /// Numbers too large for a class, in words.
    pub(super) fn of_integer(number: i64) -> Result<Self, String> {
        if number < 0 {
            return Ok(Self::None);
        }
        let class = u32::try_from(number).map(Self::Number);
        class.map_err(|_| format!("{number} is too large for a class number"))
    }

    /// The label that a number is.
    ///
    /// # Errors
    /// As [`Written::of_text`].
    pub(super) fn of_number(number: f64) -> Result<Self, String> {
        if number.fract() != 0.0 || !number.is_finite() {
            return Err(format!("{number} is neither a class number nor a class name"));
        }
        Self::of_integer(number as i64)
    }

    fn of_json(value: &Value) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::None),
            Value::String(text) => Self::of_text(text),
            Value::Number(number) => match number.as_i64() {
                Some(number) => Self::of_integer(number),
                None => Self::of_number(number.as_f64().unwrap_or(f64::NAN)),
            },
            _ => Err(format!("{value} is neither a class number nor a class name")),
        }
    }
}

/// Reads the label file at `path` for `images`: JSON (EDM's `dataset.json`, or a map from key to
/// label), CSV or TSV. Labels are class numbers, or class names that are numbered in sorted order.
///
/// Of the columns of a table, the one whose values name most images holds the keys; the labels are
/// in the only other column, or in the one called `label`, else `class`. A first line that names
/// no image is a header. A file may name an image without its ending, from a folder further up, or
/// by its name alone, where that is clear.
pub(super) fn read(path: &Path, images: &[Listed]) -> Result<Labels> {
    let name = path.display().to_string();
    let content = fs::read(path).map_err(|error| IngestError::labels(&name, error))?;
    let keys = Keys::new(images);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => number(&name, json(&name, &content)?, &keys),
        Some("csv" | "tsv") => {
            let (written, notes) = table(&name, &content, &keys)?;
            let mut labels = number(&name, written, &keys)?;
            labels.notes.extend(notes);
            Ok(labels)
        }
        _ => Err(IngestError::labels(&name, "it is neither .json, .csv nor .tsv")),
    }
}

/// EDM's `dataset.json` inside an archive or folder: its keys are those of the images.
pub(super) fn from_json(name: &str, content: &[u8]) -> Result<Labels> {
    number(name, json(name, content)?, &Keys::default())
}

/// Key and label of every image that a JSON file names, with the place of each for messages.
fn json(name: &str, content: &[u8]) -> Result<Vec<Line>> {
    let content = text(name, content)?;
    let value: Value =
        serde_json::from_str(content).map_err(|error| IngestError::labels(name, error))?;
    let shape = || {
        let reason = "it is neither EDM's {\"labels\": [[key, label], ..]} nor {key: label, ..}";
        IngestError::labels(name, reason)
    };
    let line = |key: &str, label: &Value| {
        let label = Written::of_json(label)
            .map_err(|reason| IngestError::labels(name, format!("`{key}`: {reason}")))?;
        Ok(Line { place: format!("`{key}`"), key: key.to_owned(), label })
    };
    match value.as_object().ok_or_else(shape)? {
        map if map.len() == 1 && map.get("labels").is_some_and(Value::is_null) => Ok(Vec::new()),
        map if map.get("labels").is_some_and(Value::is_array) => {
            let pairs = map["labels"].as_array().into_iter().flatten();
            pairs
                .map(|pair| match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(key), label]) => line(key, label),
                    _ => Err(IngestError::labels(name, format!("{pair} is no [key, label]"))),
                })
                .collect()
        }
        map if map.is_empty() => Err(shape()),
        map => map.iter().map(|(key, label)| line(key, label)).collect(),
    }
}

/// One image's label as a file states it.
struct Line {
    /// Where, for messages.
    place: String,
    key: String,
    label: Written,
}

/// The content as UTF-8 without its byte-order mark.
pub(super) fn text<'a>(name: &str, content: &'a [u8]) -> Result<&'a str> {
    if content.starts_with(&[0xff, 0xfe]) || content.starts_with(&[0xfe, 0xff]) {
        return Err(IngestError::labels(name, "it is UTF-16: save it as UTF-8"));
    }
    let text = std::str::from_utf8(content).map_err(|error| IngestError::labels(name, error))?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Names of columns that hold labels, in the order in which they are preferred.
const LABEL_COLUMNS: [&str; 4] = ["label", "class", "category", "target"];

/// The lines of a table, and what was made of its columns where that was not plain.
fn table(name: &str, content: &[u8], keys: &Keys) -> Result<(Vec<Line>, Option<String>)> {
    let content = text(name, content)?;
    let refused = |reason: String| IngestError::labels(name, reason);
    let records = records(name, content)?;
    let Some((first_line, first)) = records.first() else { return Ok((Vec::new(), None)) };
    if first.len() < 2 {
        let separators = "comma, semicolon or tab";
        return Err(refused(format!("line {first_line} has no {separators}")));
    }
    let named = |column: usize| {
        records.iter().filter(|(_, record)| keys.find(&record[column]).is_some()).count()
    };
    let is = |column: usize, name: &str| first[column].trim().eq_ignore_ascii_case(name);
    let columns = || 0..first.len();
    let called = LABEL_COLUMNS.iter().find_map(|name| columns().find(|&column| is(column, name)));
    // The first of the columns that name most: numbers of classes may be names of files too.
    let others = columns().rev().filter(|&column| Some(column) != called);
    let key = others.max_by_key(|&column| named(column)).unwrap_or(0);
    let others = || columns().filter(|&column| column != key);
    let has_header = match named(key) {
        0 => called.is_some(),
        _ => keys.find(&first[key]).is_none() && (records.len() > 1 || called.is_some()),
    };
    let label = match (called.filter(|_| has_header), others().collect::<Vec<_>>().as_slice()) {
        (Some(column), _) => column,
        (None, &[column]) => column,
        _ => {
            let columns = first.iter().collect::<Vec<_>>().join(", ");
            let header = if has_header { "columns" } else { "no header, and in its first line" };
            return Err(refused(format!("it has {header} {columns}: call one of them label")));
        }
    };
    let plain = !has_header || is(label, "label");
    let note = (!plain || first.len() > 2).then(|| {
        let column = |column: usize| match has_header {
            true => format!("column `{}`", &first[column]),
            false => format!("column {}", column + 1),
        };
        format!("{name}: images are named by {}, labels by {}", column(key), column(label))
    });
    let lines = records.iter().skip(usize::from(has_header)).map(|(line, record)| {
        let written = Written::of_text(&record[label]);
        let label = written.map_err(|reason| refused(format!("line {line}: {reason}")))?;
        Ok(Line { place: format!("line {line}"), key: record[key].trim().to_owned(), label })
    });
    Ok((lines.collect::<Result<_>>()?, note))
}

/// The records of a table with their line numbers. Its separator is the comma, semicolon or tab
/// that cuts the first line into most fields.
fn records(name: &str, content: &str) -> Result<Vec<(u64, csv::StringRecord)>> {
    let reader = |separator: u8| {
        let mut builder = csv::ReaderBuilder::new();
        builder.has_headers(false).flexible(true).delimiter(separator);
        builder.from_reader(content.as_bytes())
    };
    let fields = |separator: u8| match reader(separator).records().next() {
        Some(Ok(record)) => record.len(),
        _ => 0,
    };
    let separator = *b";\t,".iter().max_by_key(|&&separator| fields(separator)).unwrap_or(&b',');
    let mut records = Vec::new();
    for record in reader(separator).into_records() {
        let record = record.map_err(|error| IngestError::labels(name, error))?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        let expected =
            records.first().map_or(record.len(), |(_, first): &(_, csv::StringRecord)| first.len());
        if record.len() != expected {
            let reason = format!("line {line} has {} fields, the first {expected}", record.len());
            return Err(IngestError::labels(name, reason));
        }
        records.push((line, record));
    }
    Ok(records)
}

/// The keys of a source, and the shorter names under which label files know them.
#[derive(Default)]
struct Keys<'a> {
    /// By key, key without ending, file name, and file name without ending; none where two share it.
    by_name: HashMap<&'a str, Option<&'a str>>,
}

impl<'a> Keys<'a> {
    fn new(images: &'a [Listed]) -> Self {
        let mut by_name: HashMap<&str, Option<&str>> = HashMap::new();
        let shorter: [fn(&str) -> &str; 3] = [stem, file, |key| stem(file(key))];
        for shorten in shorter {
            for image in images {
                let entry = by_name.entry(shorten(&image.key)).or_insert(Some(&image.key));
                if entry.is_some_and(|key| key != image.key) {
                    *entry = None;
                }
            }
        }
        // A key itself is always clear.
        by_name.extend(images.iter().map(|image| (image.key.as_str(), Some(image.key.as_str()))));
        Self { by_name }
    }

    /// The key that a label file means by `name`: that key, or the one with the longest end of it.
    fn find(&self, name: &str) -> Option<&'a str> {
        let name = name.trim();
        let name = name.strip_prefix("./").unwrap_or(name);
        let ends = std::iter::once(0).chain(name.match_indices('/').map(|(at, _)| at + 1));
        ends.filter(|&start| start < name.len())
            .find_map(|start| self.by_name.get(&name[start..]))
            .copied()
            .flatten()
    }
}

/// A key without the ending of its file.
fn stem(key: &str) -> &str {
    let name_start = key.rfind('/').map_or(0, |slash| slash + 1);
    key[name_start..].rfind('.').filter(|&dot| dot > 0).map_or(key, |dot| &key[..name_start + dot])
}

/// The file name at the end of a key.
fn file(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// Gives images their labels: numbers stand for themselves, names are numbered in sorted order.
/// Without `keys` those of the lines count.
fn number(name: &str, lines: Vec<Line>, keys: &Keys) -> Result<Labels> {
    let refused = |reason: String| IngestError::labels(name, reason);
    let classes = class_names(lines.iter().map(|line| &line.label))
        .map_err(|reason| refused(format!("it {reason}")))?;
    let mut labels = Labels { classes, ..Labels::default() };
    let (mut places, mut strange) = (HashMap::with_capacity(lines.len()), Vec::new());
    for Line { place, key, label } in lines {
        let key = match keys.find(&key) {
            Some(known) => known.to_owned(),
            None => {
                strange.extend((!keys.by_name.is_empty()).then(|| key.clone()));
                key
            }
        };
        let label = class_of(&label, &labels.classes);
        match places.insert(key.clone(), (label, place.clone())) {
            Some((before, at)) if before != label => {
                let place = if at == place { String::new() } else { format!(", {at} and {place}") };
                return Err(refused(format!("`{key}` has two labels{place}")));
            }
            _ => labels.by_key.extend(label.map(|label| (key, label))),
        }
    }
    if labels.classes.is_empty() {
        labels.classes = super::numbered_classes(&name, labels.by_key.values().copied())?;
    }
    if let Some(first) = strange.first() {
        let (count, lines) = (strange.len(), places.len());
        if count == lines {
            let one = keys.by_name.values().flatten().min().unwrap_or(&"");
            return Err(refused(format!(
                "it names no image of the source: `{first}`, not `{one}`"
            )));
        }
        labels
            .notes
            .push(format!("{name}: {count} of {lines} names are of no image: `{first}`, .."));
    }
    Ok(labels)
}

/// The sorted names among `labels`; none where they are numbers.
///
/// # Errors
/// In words, where there are both.
fn class_names<'a>(labels: impl Iterator<Item = &'a Written>) -> Result<Vec<String>, String> {
    let (mut names, mut numbers) = (std::collections::BTreeSet::new(), false);
    for label in labels {
        match label {
            Written::Name(name) => drop(names.insert(name.clone())),
            Written::Number(_) => numbers = true,
            Written::None => {}
        }
    }
    match numbers && !names.is_empty() {
        true => Err("mixes class numbers and class names".to_owned()),
        false => Ok(names.into_iter().collect()),
    }
}

/// The number of a label among the sorted `classes`.
fn class_of(label: &Written, classes: &[String]) -> Option<u32> {
    match label {
        Written::None => None,
        Written::Number(number) => Some(*number),
        Written::Name(name) => Some(classes.partition_point(|class| class < name) as u32),
    }
}
