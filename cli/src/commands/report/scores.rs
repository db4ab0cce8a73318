//! The table of a run's scores, from the files that `lapflow eval --json` left in it.

use anyhow::{Context, Result};
use lapflow_report::{Block, Section, Table};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder inside a run in which scores are looked for.
pub const FOLDER: &str = "eval";

/// Where each score is in an evaluation, and what it is called.
const SCORES: [(&str, &str); 7] = [
    ("/fid", "FID"),
    ("/sfid", "sFID"),
    ("/fd_latent", "FD-latent"),
    ("/precision", "precision"),
    ("/recall", "recall"),
    ("/inception_score/mean", "IS"),
    ("/kid/mean", "KID"),
];

/// A row an evaluation in `run`'s folder, columns for the scores that there are.
pub fn scores(run: &Path) -> Result<Section> {
    let folder = run.join(FOLDER);
    let evaluations = read(&folder)?;
    let title = "Scores".to_string();
    if evaluations.is_empty() {
        let place = folder.join("NAME.json");
        let text = format!(
            "None yet. lapflow eval SAMPLES REFERENCE --json {} puts them here.",
            place.display()
        );
        return Ok(Section { title, blocks: vec![Block::Text(text)] });
    }
    Ok(Section { title, blocks: vec![Block::Table(table(&evaluations))] })
}

fn read(folder: &Path) -> Result<Vec<(String, Value)>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read(&path).with_context(|| path.display().to_string())?;
            let scores = serde_json::from_slice(&text);
            Ok((name, scores.with_context(|| path.display().to_string())?))
        })
        .collect()
}

fn table(evaluations: &[(String, Value)]) -> Table {
    let present = |pointer: &str| evaluations.iter().any(|(_, s)| s.pointer(pointer).is_some());
    let columns: Vec<_> = SCORES.iter().filter(|(pointer, _)| present(pointer)).collect();
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(value) => value.to_string(),
    };
    let mut header = vec!["set".to_string()];
    header.extend(columns.iter().map(|(_, name)| name.to_string()));
    header.extend(["images", "against", "images there", "features"].map(String::from));
    let rows = evaluations
        .iter()
        .map(|(name, scores)| {
            let number = |pointer: &str| {
                let value = scores.pointer(pointer).and_then(Value::as_f64);
                value.map_or(String::new(), |value| format!("{value:.4}"))
            };
            let mut row = vec![name.clone()];
            row.extend(columns.iter().map(|(pointer, _)| number(pointer)));
            row.extend(
                ["/samples/images", "/reference/source", "/reference/images", "/extractor/name"]
                    .map(|pointer| text(scores.pointer(pointer))),
            );
            row
        })
        .collect();
    let mut warnings: Vec<String> = evaluations
        .iter()
        .flat_map(|(_, scores)| scores["warnings"].as_array().into_iter().flatten())
        .map(|warning| text(Some(warning)))
        .collect();
    warnings.dedup();
    let caption = match warnings.as_slice() {
        [] => "Scores of image sets".to_string(),
        warnings => format!("Scores of image sets. Mind: {}", warnings.join("; ")),
    };
    Table { caption, header, rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_holds_what_was_scored() {
        let run = tempfile::tempdir().unwrap();
        let blocks = |run: &Path| scores(run).unwrap().blocks;
        assert!(matches!(&blocks(run.path())[0], Block::Text(text) if text.contains("--json")));

        let folder = run.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        let set = |images: u64| json!({"source": "faces", "images": images});
        let evaluation = json!({
            "fid": 12.5, "precision": 0.75, "samples": set(50000), "reference": set(10000),
            "extractor": {"name": "inception-2015-12-05"}, "warnings": ["look out"],
        });
        fs::write(folder.join("b.json"), evaluation.to_string()).unwrap();
        let Block::Table(table) = &blocks(run.path())[0] else { panic!("no table") };
        let header = ["set", "FID", "precision", "images", "against", "images there", "features"];
        assert_eq!(table.header, header);
        let row = ["b", "12.5000", "0.7500", "50000", "faces", "10000", "inception-2015-12-05"];
        assert_eq!(table.rows, [row]);
        assert!(table.caption.contains("look out"));

        fs::write(folder.join("a.json"), "{").unwrap();
        assert!(format!("{:#}", scores(run.path()).err().unwrap()).contains("a.json"));
    }
}
