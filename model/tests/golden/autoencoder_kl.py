"""Goldens of AutoencoderKL from diffusers: `python autoencoder_kl.py` beside this file.

Four configurations, of 4, 8 and 16 groups, each under diffusers' names and under those of the original (LDM) code; that
the latter are right is checked with diffusers' own converter. Made with torch 2.15, diffusers
0.42.1, safetensors 0.8.
"""

import json

import torch
from autoencoder_weights import uniform, weight
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file

CONFIGS = {
    "f4": dict(block_out_channels=(8, 16, 24), layers_per_block=2, latent_channels=4, norm_num_groups=4),
    "f8": dict(
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5305,
    ),
    "g16": dict(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=16, scaling_factor=0.5
    ),
    "f16": dict(block_out_channels=(8, 8, 16, 16, 24), layers_per_block=1, latent_channels=32, norm_num_groups=4),
}
# Height and width.
SIZES = {"f4": (16, 24), "g16": (16, 24), "f8": (16, 24), "f16": (32, 16)}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def ldm_name(name, levels):
    """diffusers' name of a parameter to the original code's."""
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        return name
    words = rest.split(".")
    if words[0] in ("down_blocks", "up_blocks"):
        side, level = words[0].split("_")[0], int(words[1])
        level = level if side == "down" else levels - 1 - level
        if words[2] == "resnets":
            tail = ["conv_shortcut" == word and "nin_shortcut" or word for word in words[4:]]
            return ".".join([part, side, str(level), "block", words[3], *tail])
        return ".".join([part, side, str(level), side + "sample", *words[4:]])
    if words[0] == "mid_block" and words[1] == "resnets":
        return ".".join([part, "mid", f"block_{int(words[2]) + 1}", *words[3:]])
    if words[0] == "mid_block":
        tail = ".".join(words[3:])
        key = next(key for key in ATTENTION if tail.startswith(key + "."))
        return ".".join([part, "mid", "attn_1", ATTENTION[key] + tail[len(key):]])
    return name.replace("conv_norm_out", "norm_out")


def build(config, ldm):
    levels = len(config["block_out_channels"])
    kinds = dict(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels
    )
    net = AutoencoderKL(**config, **kinds).eval()
    checkpoint = {}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            key, shape = name, tuple(parameter.shape)
            if ldm:
                key = ldm_name(name, levels)
                point = ".attn_1." in key and len(shape) == 2
                shape = shape + (1, 1) if point else shape
            checkpoint[key] = weight(key, shape)
            parameter.copy_(checkpoint[key].reshape(parameter.shape))
    if ldm:
        converted = convert_ldm_vae_checkpoint(dict(checkpoint), dict(net.config))
        state = net.state_dict()
        assert converted.keys() == state.keys()
        assert all(torch.equal(converted[key].reshape(state[key].shape), state[key]) for key in state)
    return net, {key: ",".join(map(str, value.shape)) for key, value in checkpoint.items()}


if __name__ == "__main__":
    for name, config in CONFIGS.items():
        height, width = SIZES[name]
        images = torch.from_numpy(uniform("images", 3 * 3 * height * width).reshape(3, 3, height, width))
        with open(f"autoencoder_kl_{name}.json", "w") as file:
            json.dump({"_class_name": "AutoencoderKL", "act_fn": "silu", **config}, file, indent=2)
        for naming in ("diffusers", "ldm"):
            net, shapes = build(config, naming == "ldm")
            with torch.no_grad():
                posterior = net.encode(images).latent_dist
                decoded = net.decode(posterior.mean).sample
            golden = {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": decoded}
            golden = {key: value.contiguous() for key, value in golden.items()}
            save_file(golden, f"autoencoder_kl_{name}_{naming}.safetensors", metadata=shapes)
            print(name, naming, *(round(value.std().item(), 3) for value in golden.values()))
