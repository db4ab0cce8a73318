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
        classes: None,
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
            let norm = Tensor::ones(8, DType::F32, &Device::Cpu).unwrap();
            t.insert("blocks.0.attn.q_norm.weight".into(), norm);
        },
        "blocks.0.attn.q_norm.weight",
    );
    refused(
        &|t| {
            let head = (&t["final_layer.linear.bias"] * f64::INFINITY).unwrap();
            t.insert("final_layer.linear.bias".into(), head);
        },
        "`final_layer.linear.bias` holds values",
    );
    refused(
        &|t| {
            let table = (&t["pos_embed"] + 0.1).unwrap();
            t.insert("pos_embed".into(), table);
        },
        "pos_embed",
    );
}

/// What trainers put before the keys, and the rounding of 16-bit files.
#[test]
fn prefixes_are_looked_through_and_half_precision_is_read() {
    let path = golden_path("dit_published.pt");
    let both = Weights::read(&path).unwrap();
    let read = |rename: &dyn Fn(&str) -> Option<String>, dtype: DType| {
        let mut weights = both.clone();
        let renamed = both
            .tensors
            .iter()
            .filter_map(|(key, x)| Some((rename(key)?, x.to_dtype(dtype).unwrap())));
        weights.tensors = renamed.collect();
        let published = dit(&path, weights, &unsaid()).unwrap();
        let groups = published.tensors.iter().filter_map(|(name, _)| name.split('.').next());
        let groups: std::collections::BTreeSet<_> = groups.map(str::to_owned).collect();
        groups.into_iter().collect::<Vec<_>>().join(" ")
    };
    let under = |prefix: &'static str| {
        move |key: &str| key.strip_prefix("ema.").map(|name| format!("{prefix}{name}"))
    };
    for prefix in
        ["", "module.", "_orig_mod.", "module._orig_mod.", "ema.", "net.", "model.module."]
    {
        assert_eq!(read(&under(prefix), DType::F32), "model", "{prefix}");
    }
    let wrapped = |key: &str| Some(key.replace("model.", "state_dict.module."));
    assert_eq!(read(&wrapped, DType::F32), "ema model");
    for dtype in [DType::F16, DType::BF16] {
        assert_eq!(read(&under(""), dtype), "model");
    }
}

#[test]
fn what_the_file_does_not_say_is_compared_with_what_is_given() {
    let path = golden_path("dit_published.pt");
    let refused = |change: &dyn Fn(&mut Unsaid), word: &str| {
        let mut given = unsaid();
        change(&mut given);
        let error = dit(&path, Weights::read(&path).unwrap(), &given).err().unwrap().to_string();
        assert!(error.contains(word) && error.contains("dit_published.pt"), "{error}");
    };
    refused(&|given| given.normalization.scale.truncate(3), "the autoencoder given makes 3");
    refused(&|given| given.classes = Some(6), "none for the null class");
    refused(&|given| given.classes = Some(7), "not those of 7 classes");
    refused(&|given| given.heads = None, "--heads");
}
