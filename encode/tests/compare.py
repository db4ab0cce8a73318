"""Compares every stored level of a dataset with PyTorch and numpy: `python compare.py TABLE IMAGES WEIGHTS`.

TABLE is an encoded dataset (posterior mean, ADM crop, no flip), IMAGES its source folder, WEIGHTS
either a folder of diffusers' AutoencoderKL or the encoder's .pth of TAEF2. `python compare.py
--random FOLDER` writes such an AutoencoderKL with random weights. The crops are PIL's, the pyramid
numpy's, so nothing is shared with what made the table. Written for torch 2.15,
diffusers 0.42.1, pyarrow 26, Pillow 13; its comparison has not been run to its end yet.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "model/tests/golden"))


def adm(image, size):
    """The ADM centre crop as MATH.md section 8 states it."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def down(x):
    c, h, w = x.shape
    return x.reshape(c, h // 2, 2, w // 2, 2).mean((2, 4))


def split(x, levels):
    """MATH.md section 1."""
    pyramid = []
    for _ in range(levels - 1):
        coarse = down(x)
        pyramid.append(x - coarse.repeat(2, 1).repeat(2, 2))
        x = coarse
    return pyramid + [x]


def encoder_of(weights):
    if weights.is_dir():
        from diffusers import AutoencoderKL

        net = AutoencoderKL.from_pretrained(weights).eval()
        return lambda x: net.encode(x).latent_dist.mean
    from autoencoder_tiny import Taef2

    net = Taef2()
    net.encoder.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    net.float().eval()
    return net.encode


def properties(table):
    for log in sorted((table / "_delta_log").glob("*.json")):
        for line in log.read_text().splitlines():
            if "metaData" in (action := json.loads(line)):
                return json.loads(action["metaData"]["configuration"]["lapflow.metadata"])


def files(table):
    for log in sorted((table / "_delta_log").glob("*.json")):
        for line in log.read_text().splitlines():
            if "add" in (action := json.loads(line)):
                yield table / action["add"]["path"]


def compare(table, images, weights):
    metadata, encode = properties(table), encoder_of(weights)
    levels = len(metadata["levels"])
    size, dtype = metadata["preprocessing"]["size"], {"f16": "<f2", "f32": "<f4"}[metadata["dtype"]]
    rows, errors, scales = 0, np.zeros(levels), np.zeros(levels)
    for file in files(table):
        for row in pq.read_table(file).to_pylist():
            crop = adm(Image.open(images / row["source"]).convert("RGB"), size)
            pixels = np.asarray(crop, np.float32).transpose(2, 0, 1) / 127.5 - 1
            with torch.no_grad():
                latent = encode(torch.from_numpy(pixels)[None])[0].double().numpy()
            for k, expected in enumerate(split(latent, levels)):
                stored = np.frombuffer(row[f"level_{k}"], dtype).astype(np.float64)
                errors[k] = max(errors[k], np.abs(stored - expected.ravel()).max())
                scales[k] = max(scales[k], np.abs(expected).max())
            rows += 1
    print(f"{rows} rows, worst absolute error by level {errors}, largest value {scales}, relative {errors / scales}")
    return (errors / scales).max()


if __name__ == "__main__":
    if sys.argv[1] == "--random":
        from diffusers import AutoencoderKL

        torch.manual_seed(0)
        shape = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4)
        blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
        AutoencoderKL(**shape, **blocks).save_pretrained(sys.argv[2])
    elif compare(*map(Path, sys.argv[1:4])) > 2e-3:
        sys.exit("the table differs from PyTorch and numpy")
