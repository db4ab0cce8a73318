//! The two namings of an `AutoencoderKL`'s parameters, translated to diffusers', and the prefixes
//! under which trainers and whole pipelines keep an autoencoder.

use candle_core::{Result, Tensor};
use std::collections::BTreeMap;

/// Parameters by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Keys that tell an `AutoencoderKL`, under either naming.
const MARKERS: [&str; 2] =
    ["encoder.down_blocks.0.resnets.0.conv1.weight", "encoder.down.0.block.0.conv1.weight"];
/// What trainers save beside the autoencoder: perceptual and adversarial losses, averages.
const TRAINING_ONLY: [&str; 2] = ["loss.", "model_ema."];

/// Whether `weights` hold an `AutoencoderKL` under either naming.
pub(super) fn recognises(weights: &Tensors) -> bool {
    prefix_of(weights, &MARKERS).is_some()
}

/// What stands before the first of `markers` in the keys: nothing, `first_stage_model.` in a whole
/// Stable Diffusion checkpoint, `vae.`, `module.` and the like; the shortest where there are several.
pub(super) fn prefix_of(weights: &Tensors, markers: &[&str]) -> Option<String> {
    let prefixes =
        weights.keys().flat_map(|key| markers.iter().filter_map(|marker| key.strip_suffix(marker)));
    let whole = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    whole.min_by_key(|prefix| prefix.len()).map(str::to_owned)
}

/// The tensors beside the first of `markers`, without the prefix that they share.
pub(super) fn under(weights: Tensors, markers: &[&str]) -> Tensors {
    match prefix_of(&weights, markers) {
        Some(prefix) if !prefix.is_empty() => weights
            .into_iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?.to_owned(), tensor)))
            .collect(),
        _ => weights,
    }
}

/// `weights` under diffusers' current names, training-only parameters left out.
///
/// # Errors
/// When an attention weight has no matrix shape.
pub fn diffusers_names(weights: Tensors) -> Result<Tensors> {
    let weights = under(weights, &MARKERS);
    let up_levels = (0..)
        .take_while(|i| weights.contains_key(&format!("decoder.up.{i}.block.0.conv1.weight")))
        .count();
    weights
        .into_iter()
        .filter(|(key, _)| !TRAINING_ONLY.iter().any(|prefix| key.starts_with(prefix)))
        .map(|(key, tensor)| {
            let key = diffusers_name(&key, up_levels);
            let point = key.contains(".attentions.") && tensor.rank() == 4;
            let tensor = if point { tensor.flatten_from(1)? } else { tensor };
            Ok((key, tensor))
        })
        .collect()
}

fn diffusers_name(key: &str, up_levels: usize) -> String {
    let parts: Vec<&str> = key.split('.').collect();
    let [part, ref rest @ ..] = parts[..] else { return key.to_owned() };
    let renamed = match rest {
        ["down", i, "block", j, rest @ ..] => {
            format!("down_blocks.{i}.resnets.{j}.{}", in_block(rest))
        }
        ["down", i, "downsample", rest @ ..] => {
            format!("down_blocks.{i}.downsamplers.0.{}", rest.join("."))
        }
        ["up", i, "block", j, rest @ ..] => {
            format!("up_blocks.{}.resnets.{j}.{}", reversed(i, up_levels), in_block(rest))
        }
        ["up", i, "upsample", rest @ ..] => {
            let i = reversed(i, up_levels);
            format!("up_blocks.{i}.upsamplers.0.{}", rest.join("."))
        }
        ["mid", "block_1", rest @ ..] => format!("mid_block.resnets.0.{}", in_block(rest)),
        ["mid", "block_2", rest @ ..] => format!("mid_block.resnets.1.{}", in_block(rest)),
        ["mid", "attn_1", rest @ ..] => format!("mid_block.attentions.0.{}", in_attention(rest)),
        ["mid_block", "attentions", i, rest @ ..] => {
            format!("mid_block.attentions.{i}.{}", in_attention(rest))
        }
        ["norm_out", rest @ ..] => format!("conv_norm_out.{}", rest.join(".")),
        _ => return key.to_owned(),
    };
    format!("{part}.{renamed}")
}

/// The original code counts the decoder's levels from the finest.
fn reversed(level: &str, levels: usize) -> String {
    let index = level.parse::<usize>().ok().and_then(|i| levels.checked_sub(i + 1));
    index.map_or_else(|| level.to_owned(), |i| i.to_string())
}

fn in_block(rest: &[&str]) -> String {
    rest.join(".").replace("nin_shortcut", "conv_shortcut")
}

fn in_attention(rest: &[&str]) -> String {
    let [name, rest @ ..] = rest else { return String::new() };
    let name = match *name {
        "norm" => "group_norm",
        "q" | "query" => "to_q",
        "k" | "key" => "to_k",
        "v" | "value" => "to_v",
        "proj_out" | "proj_attn" => "to_out.0",
        other => other,
    };
    format!("{name}.{}", rest.join("."))
}
