//! Small files that belong to a dataset without being part of its table: plans, skip lists.
//!
//! They live under `_lapflow/` in the table's root; readers of the table ignore names that begin
//! with an underscore.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::dataset::Dataset;
use crate::error::Result;
use crate::location::on_runtime;

/// Folder of the files, within the table's root.
pub(crate) const FOLDER: &str = "_lapflow";

impl Dataset {
    /// The content of the file `name` beside the table, if there is one.
    pub async fn read_beside(&self, name: &str) -> Result<Option<Bytes>> {
        let (store, path) = (Arc::clone(&self.location().store), self.beside(name));
        let object = path.clone();
        let read = on_runtime(async move { store.get(&object).await?.bytes().await }).await;
        match read {
            Ok(content) => Ok(Some(content)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.location().failed("reading", &path, error)),
        }
    }

    /// Writes the file `name` beside the table, replacing what was there.
    pub async fn write_beside(&self, name: &str, content: impl Into<Bytes>) -> Result<()> {
        self.put_beside(name, content.into(), PutMode::Overwrite).await.map(|_| ())
    }

    /// Writes the file `name` beside the table unless it is there already; whether it was written.
    /// Among any number of writers exactly one is told so.
    pub async fn create_beside(&self, name: &str, content: impl Into<Bytes>) -> Result<bool> {
        self.put_beside(name, content.into(), PutMode::Create).await
    }

    /// Names of the files beside the table that begin with `folder/`, sorted.
    pub async fn list_beside(&self, folder: &str) -> Result<Vec<String>> {
        let (store, prefix) = (Arc::clone(&self.location().store), self.beside(folder));
        let listed = prefix.clone();
        let files: Vec<_> =
            on_runtime(async move { store.list(Some(&listed)).try_collect().await })
                .await
                .map_err(|error| self.location().failed("listing", &prefix, error))?;
        let mut names: Vec<_> = files
            .iter()
            .filter_map(|file: &object_store::ObjectMeta| file.location.filename())
            .map(|file| format!("{folder}/{file}"))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn put_beside(&self, name: &str, content: Bytes, mode: PutMode) -> Result<bool> {
        let (store, path) = (Arc::clone(&self.location().store), self.beside(name));
        let object = path.clone();
        let put = on_runtime(async move {
            store.put_opts(&object, PutPayload::from(content), PutOptions::from(mode)).await
        })
        .await;
        match put {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.location().failed("writing", &path, error)),
        }
    }

    fn beside(&self, name: &str) -> Path {
        self.location().path(&format!("{FOLDER}/{name}"))
    }
}
