//! Writes a small dataset whose values follow a formula, for the golden dataset and the readers
//! in other languages: `cargo run --example fixture -- OUT f16|bf16|f32 mean|moments [ROWS]`.
//!
//! Value j of payload k (levels first, then log-variance) of row `id` is
//! ((31 id + 17 k + 7 j) mod 97) / 8 - 6, exact in every dtype.

use lapflow_store::*;

const SHARDS: i64 = 3;

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [uri, dtype, posterior, rest @ ..] = arguments.as_slice() else {
        return Err("arguments: OUT f16|bf16|f32 mean|moments [ROWS]".into());
    };
    let rows: i64 = rest.first().map_or(Ok(60), |rows| rows.parse())?;
    let quoted = |name: &str| format!("\"{name}\"");
    let dtype: Dtype = serde_json::from_str(&quoted(dtype))?;
    let posterior: Posterior = serde_json::from_str(&quoted(posterior))?;
    let levels = vec![
        LevelSpec { channels: 2, height: 4, width: 6 },
        LevelSpec { channels: 2, height: 2, width: 3 },
    ];
    let mut metadata = Metadata::new(levels, dtype, posterior);
    metadata.classes = vec!["cat".to_string(), "dog".to_string()];
    metadata.autoencoder = serde_json::json!({"architecture": "none", "scale": 0.18215});
    metadata.preprocessing = serde_json::json!({"crop": "adm", "size": 32});
    let dataset = Dataset::create(uri, &metadata).await?;
    let row_group_bytes_target = 16 * metadata.sample_bytes();
    let options = ShardOptions { row_group_bytes_target, ..ShardOptions::default() };
    for shard in 0..SHARDS {
        let mut writer = dataset.shard_with(&format!("{shard:05}"), options).await?;
        for id in rows * shard / SHARDS..rows * (shard + 1) / SHARDS {
            writer.push(row(&metadata, id)).await?;
        }
        writer.commit().await?;
    }
    Ok(())
}

fn row(metadata: &Metadata, id: i64) -> Row {
    let payload = |(index, spec): (usize, LevelSpec)| {
        let value = |j: usize| (31 * id + 17 * index as i64 + 7 * j as i64) % 97;
        let values: Vec<f32> = (0..spec.values()).map(|j| value(j) as f32 / 8.0 - 6.0).collect();
        metadata.dtype.encode(&values)
    };
    let specs = metadata.levels.iter().copied().chain(metadata.logvar()).enumerate();
    let mut levels: Vec<_> = specs.map(payload).collect();
    let logvar = levels.split_off(metadata.levels.len()).pop();
    Row {
        id,
        label: (id % 3) as i32 - 1,
        source: format!("class/{id}.jpg"),
        sha256: [id as u8; 32],
        width: 640,
        height: 480 + id as i32,
        view: (id % 2) as i8,
        levels,
        logvar,
    }
}
