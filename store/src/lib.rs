//! Datasets of Laplacian latent pyramids: Parquet shards in a Delta table, and the shuffling loader.
