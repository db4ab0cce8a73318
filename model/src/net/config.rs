//! The `[model]` section and the shape of what the network works on.

use crate::error::{ModelError, Result};
use crate::flow::{FlowConfig, Method};
use crate::kernels::Mask;
use serde::{Deserialize, Serialize};

/// The `[model]` section: backbone size, what the levels share, how they attend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Named width, depth and heads; `width`, `depth` and `heads` override it one by one.
    pub preset: Preset,
    /// Channels of a token.
    pub width: Option<usize>,
    /// Blocks.
    pub depth: Option<usize>,
    /// Attention heads; must divide the width.
    pub heads: Option<usize>,
    /// Side of a patch, in latent pixels.
    pub patch: usize,
    /// Which levels a level attends to.
    pub mask: Mask,
    /// Parts of which every level has its own copy.
    pub untied: Vec<Part>,
    /// Whether time and label also enter as tokens of the coarsest level.
    pub cond_tokens: bool,
    /// The network sees `t * time_scale`.
    pub time_scale: f64,
    /// Whether the head also gives the reverse step's variance (DiT's own objective).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub learn_sigma: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            preset: Preset::B,
            width: None,
            depth: None,
            heads: None,
            patch: 2,
            mask: Mask::Causal,
            untied: vec![Part::Embed, Part::Qkv, Part::Head],
            cond_tokens: true,
            time_scale: 1000.0,
            learn_sigma: false,
        }
    }
}

/// Backbone sizes: DiT's, and a tiny one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// 192 wide, 12 deep, 3 heads.
    Ti,
    /// 384 wide, 12 deep, 6 heads.
    S,
    /// 768 wide, 12 deep, 12 heads.
    B,
    /// 1024 wide, 24 deep, 16 heads.
    L,
    /// 1152 wide, 28 deep, 16 heads.
    XL,
}

/// A part of the network that the levels share or own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Patch embedding.
    Embed,
    /// Query, key and value projections.
    Qkv,
    /// Attention output projections.
    AttnOut,
    /// Feed-forward networks.
    Mlp,
    /// The blocks' adaLN-Zero regressions.
    Adaln,
    /// Final adaLN and linear head.
    Head,
}

/// What the network works on: latents `(channels, height, width)` in `levels` levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Latent channels.
    pub channels: usize,
    /// Height of level 0.
    pub height: usize,
    /// Width of level 0.
    pub width: usize,
    /// Pyramid levels.
    pub levels: usize,
    /// Label classes; 0 for an unconditional model.
    pub classes: usize,
}

impl ModelConfig {
    fn named(&self) -> (usize, usize, usize) {
        match self.preset {
            Preset::Ti => (192, 12, 3),
            Preset::S => (384, 12, 6),
            Preset::B => (768, 12, 12),
            Preset::L => (1024, 24, 16),
            Preset::XL => (1152, 28, 16),
        }
    }

    /// Channels of a token.
    pub fn width(&self) -> usize {
        self.width.unwrap_or(self.named().0)
    }

    /// Blocks.
    pub fn depth(&self) -> usize {
        self.depth.unwrap_or(self.named().1)
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.heads.unwrap_or(self.named().2)
    }

    /// Condition tokens in the coarsest level's stream.
    pub fn cond_token_count(&self, geometry: &Geometry) -> usize {
        match (self.cond_tokens, geometry.classes > 0) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        }
    }

    /// Channels of the network's answer.
    pub fn outputs(&self, geometry: &Geometry) -> usize {
        geometry.channels * if self.learn_sigma { 2 } else { 1 }
    }

    /// Whether this network can be trained by `flow`'s method.
    ///
    /// # Errors
    /// When a method of one network for all levels meets parts of a level's own, or a learned
    /// variance one that has none.
    pub fn validate_method(&self, flow: &FlowConfig) -> Result<()> {
        let wrong = |reason: String| Err(ModelError::config("model", reason));
        let method = flow.method;
        if method != Method::Lapflow && flow.levels > 1 && !self.untied.is_empty() {
            return wrong(format!("flow.method {method:?} is one network for all: untied = []"));
        }
        if method != Method::Dit && self.learn_sigma {
            return wrong("learn_sigma is for flow.method = \"dit\"".into());
        }
        Ok(())
    }

    /// How many copies of `part` there are.
    pub fn copies(&self, part: Part, geometry: &Geometry) -> usize {
        if self.untied.contains(&part) { geometry.levels } else { 1 }
    }

    /// Whether a network of this configuration can be built on `geometry`.
    ///
    /// # Errors
    /// Names the field and the values that do not fit.
    pub fn validate(&self, geometry: &Geometry) -> Result<()> {
        let wrong = |reason: String| Err(ModelError::config("model", reason));
        let (width, heads) = (self.width(), self.heads());
        if width == 0 || self.depth() == 0 || heads == 0 || self.patch == 0 {
            return wrong("width, depth, heads and patch must be positive".into());
        }
        if width % heads != 0 || width % 4 != 0 {
            return wrong(format!("width {width} must be divisible by {heads} heads and by 4"));
        }
        if geometry.levels == 0 || geometry.channels == 0 {
            return wrong("no levels or no channels".into());
        }
        let cell = self.patch << (geometry.levels - 1);
        let (h, w) = (geometry.height, geometry.width);
        if h == 0 || w == 0 || h % cell != 0 || w % cell != 0 {
            let (levels, patch) = (geometry.levels, self.patch);
            return wrong(format!(
                "{h}x{w} latents do not divide into {levels} levels of {patch}x{patch} patches"
            ));
        }
        Ok(())
    }
}

impl Geometry {
    /// `(height, width)` of level `k`.
    pub fn level_size(&self, k: usize) -> (usize, usize) {
        (self.height >> k, self.width >> k)
    }

    /// Tokens of level `k` in patches of side `patch`.
    pub fn level_tokens(&self, k: usize, patch: usize) -> usize {
        let (h, w) = self.level_size(k);
        (h / patch) * (w / patch)
    }
}
