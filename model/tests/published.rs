//! A DiT in its published layout against its own answers (`golden/dit_published.py`).

mod common;

use candle_core::{DType, Device, Tensor};
use common::{golden_path, relative_error};
use lapflow_model::checkpoint::{Checkpoint, WeightSet};
use lapflow_model::flow::Method;
use lapflow_model::normalization::Normalization;
use lapflow_model::published::{Unsaid, dit};
use lapflow_model::weights::Weights;
use serde_json::json;

fn unsaid() -> Unsaid {
    Unsaid {
        autoencoder: json!({}),
        autoencoder_config: json!({}),
        normalization: Normalization { shift: vec![0.0; 4], scale: vec![0.18215; 4] },
        heads: Some(2),
    }
}

#[test]
fn a_published_checkpoint_answers_as_its_author_does() {
    let path = golden_path("dit_published.pt");
    let published = dit(&path, Weights::read(&path).unwrap(), &unsaid()).unwrap();
    let card = &published.card;
    assert_eq!((card.model.width(), card.model.depth(), card.model.patch), (16, 2, 2));
    assert_eq!((card.geometry.height, card.geometry.classes), (8, 5));
    assert!(card.model.learn_sigma && card.flow.method == Method::Dit);

    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("dit.safetensors");
    Checkpoint::write(&ours, card, None, &published.tensors).unwrap();
    let checkpoint = Checkpoint::read(&ours).unwrap();
    let golden = Weights::read(golden_path("dit_published.safetensors")).unwrap().tensors;
    let t = (&golden["step"] / 1000.0).unwrap().to_dtype(DType::F32).unwrap();
    let labels = golden["y"].to_dtype(DType::U32).unwrap();
    for (set, name) in [(WeightSet::Ema, "ema"), (WeightSet::Raw, "model")] {
        let net = checkpoint.network(set, &Device::Cpu).unwrap();
        let answer = net.forward(&[golden["x"].clone()], &t, Some(&labels)).unwrap().remove(0);
        let error = relative_error(&answer, &golden[name]);
        eprintln!("{name}: {error:.1e}");
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn bare_weights_are_read_too_and_what_does_not_fit_is_named() {
    let path = golden_path("dit_published.pt");
    let both = Weights::read(&path).unwrap();
    let bare = |spoil: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        let mut weights = both.clone();
        weights.tensors = both
            .tensors
            .iter()
            .filter_map(|(name, x)| Some((name.strip_prefix("ema.")?.to_string(), x.clone())))
            .collect();
        spoil(&mut weights.tensors);
        dit(&path, weights, &unsaid())
    };
    let read = bare(&|_| ()).unwrap();
    assert!(read.tensors.iter().all(|(name, _)| name.starts_with("model.")));
    let refused = |spoil: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>), word: &str| {
        let error = bare(spoil).err().unwrap().to_string();
        assert!(error.contains(word) && error.contains("dit_published.pt"), "{error}");
    };
    refused(&|t| drop(t.remove("x_embedder.proj.weight")), "x_embedder");
    refused(
        &|t| {
            let table = (&t["pos_embed"] + 0.1).unwrap();
            t.insert("pos_embed".into(), table);
        },
        "pos_embed",
    );
}
