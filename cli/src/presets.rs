//! The presets: each a list of small TOML files, later ones over earlier ones.
//!
//! There is one for every row of the paper's Tables 1 to 3 and 6 that a network of this workspace
//! can be; the U-Nets of Table 1 (FM, LDM) are not. A preset's run folder is `runs/<name>`.

/// One TOML file.
macro_rules! part {
    ($name:literal) => {
        include_str!(concat!("../presets/", $name, ".toml"))
    };
}

const CELEBA_256: &str = part!("celebahq-256");
const CELEBA_512: &str = part!("celebahq-512");
const CELEBA_1024: &str = part!("celebahq-1024");
const IMAGENET_B2: &str = part!("imagenet-256-b2");
const IMAGENET_XL2: &str = part!("imagenet-256-xl2");
const LFM: &str = part!("parts/lfm");
const PYRAMIDAL: &str = part!("parts/pyramidal");
const EDIFY: &str = part!("parts/edify");
const DIT: &str = part!("parts/dit");
const PIXEL: &str = part!("parts/pixel");
const SD_VAE: &str = part!("parts/sd-vae");
const IMAGENET_SD_VAE: &str = part!("parts/imagenet-sd-vae");
const GVP: &str = part!("parts/gvp");
const STEPS_600K: &str = part!("parts/steps-600k");
const STEPS_7M: &str = part!("parts/steps-7m");

/// The presets by name.
pub const PRESETS: &[(&str, &[&str])] = &[
    ("demo", &[part!("demo")]),
    // Tables 1 and 6, CelebA-HQ.
    ("celebahq-256", &[CELEBA_256]),
    ("celebahq-512", &[CELEBA_512]),
    ("celebahq-1024", &[CELEBA_1024]),
    ("lfm-celebahq-256", &[CELEBA_256, SD_VAE, LFM]),
    ("lfm-celebahq-512", &[CELEBA_512, LFM]),
    ("lfm-celebahq-1024", &[CELEBA_1024, LFM]),
    ("pyramidal-celebahq-256", &[CELEBA_256, SD_VAE, PYRAMIDAL]),
    ("edify-celebahq-256", &[CELEBA_256, PIXEL, EDIFY]),
    // Table 2, ablations at 256 pixels; the defaults are celebahq-256 and lfm-celebahq-256.
    ("celebahq-256-separate", &[CELEBA_256, part!("parts/separate")]),
    ("celebahq-256-mask-none", &[CELEBA_256, part!("parts/mask-none")]),
    ("celebahq-256-mask-self", &[CELEBA_256, part!("parts/mask-self")]),
    ("celebahq-256-start-0.1", &[CELEBA_256, part!("parts/start-0.1")]),
    ("celebahq-256-start-0.2", &[CELEBA_256, part!("parts/start-0.2")]),
    ("celebahq-256-start-0.9", &[CELEBA_256, part!("parts/start-0.9")]),
    ("celebahq-256-lr-final-1e-4", &[CELEBA_256, part!("parts/lr-final-1e-4")]),
    ("celebahq-256-lr-final-1e-5", &[CELEBA_256, part!("parts/lr-final-1e-5")]),
    ("celebahq-256-lr-final-1e-7", &[CELEBA_256, part!("parts/lr-final-1e-7")]),
    ("celebahq-256-gvp", &[CELEBA_256, GVP]),
    ("celebahq-256-levels-3", &[CELEBA_256, part!("parts/levels-3")]),
    ("celebahq-256-levels-4", &[CELEBA_256, part!("parts/levels-4")]),
    ("celebahq-256-image", &[CELEBA_256, PIXEL]),
    ("celebahq-256-sd-vae", &[CELEBA_256, SD_VAE]),
    ("lfm-celebahq-256-gvp", &[CELEBA_256, SD_VAE, LFM, GVP]),
    ("lfm-celebahq-256-image", &[CELEBA_256, PIXEL, LFM]),
    ("lfm-celebahq-256-eq-vae", &[CELEBA_256, LFM]),
    // Tables 3 and 6, ImageNet; without guidance where the table has none.
    ("imagenet-256-b2", &[IMAGENET_B2]),
    ("imagenet-256-b2-600k", &[IMAGENET_B2, STEPS_600K]),
    ("imagenet-256-b2-7m", &[IMAGENET_B2, STEPS_7M]),
    ("imagenet-256-xl2", &[IMAGENET_XL2]),
    ("imagenet-256-xl2-600k", &[IMAGENET_XL2, STEPS_600K]),
    ("lfm-imagenet-256-b2", &[IMAGENET_B2, IMAGENET_SD_VAE, LFM]),
    ("lfm-imagenet-256-b2-600k", &[IMAGENET_B2, IMAGENET_SD_VAE, LFM, STEPS_600K]),
    ("lfm-imagenet-256-b2-7m", &[IMAGENET_B2, IMAGENET_SD_VAE, LFM, STEPS_7M]),
    ("lfm-imagenet-256-xl2-600k", &[IMAGENET_XL2, IMAGENET_SD_VAE, LFM, STEPS_600K]),
    ("pyramidal-imagenet-256-b2-600k", &[IMAGENET_B2, IMAGENET_SD_VAE, PYRAMIDAL, STEPS_600K]),
    ("pyramidal-imagenet-256-xl2-600k", &[IMAGENET_XL2, IMAGENET_SD_VAE, PYRAMIDAL, STEPS_600K]),
    ("dit-imagenet-256-b2-600k", &[IMAGENET_B2, IMAGENET_SD_VAE, STEPS_600K, DIT]),
    ("dit-imagenet-256-xl2-600k", &[IMAGENET_XL2, IMAGENET_SD_VAE, STEPS_600K, DIT]),
];
