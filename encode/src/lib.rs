//! The dataset job: images in, committed shards out.
