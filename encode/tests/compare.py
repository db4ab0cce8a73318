"""Compares every stored level of a dataset with PyTorch and numpy.

    python compare.py TABLE IMAGES WEIGHTS [--crops FOLDER]
    python compare.py --random FOLDER [WIDTHS]

TABLE is an encoded dataset (posterior mean, ADM crop, no flip), IMAGES its source folder, WEIGHTS
either a folder of diffusers' AutoencoderKL or the encoder's .pth of TAEF2. Without --crops the
crops are PIL's, of PIL's decoding: nothing is shared with what made the table, and the few values
in which two JPEG decoders differ by one are amplified by the network. With --crops the same crops
(`lapflow ingest`) enter both, and the levels must agree to the rounding of f16 and of f32 sums.
`--random` writes an AutoencoderKL of random weights with SD-VAE's or the given channel widths.
`compare.sh` does all of it.
"""

import argparse
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

        net = AutoencoderKL.from_pretrained(weights).double().eval()
        return lambda x: net.encode(x).latent_dist.mean
    from autoencoder_tiny import Taef2

    net = Taef2()
    net.encoder.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    net.double().eval()
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


def crop_of(row, images, crops, size):
    """The image's crop as `(3, size, size)` in [-1, 1]."""
    if crops is None:
        crop = adm(Image.open(images / row["source"]).convert("RGB"), size)
    else:
        crop = Image.open((crops / row["source"]).with_suffix(".png"))
    return np.asarray(crop, np.float32).transpose(2, 0, 1) / 127.5 - 1


def compare(table, images, weights, crops):
    """Prints each level's errors; the largest error beyond f16's rounding, and the root mean square
    error, both relative to the level's root mean square, over all levels."""
    metadata, encode = properties(table), encoder_of(weights)
    levels = len(metadata["levels"])
    size, dtype = metadata["preprocessing"]["size"], {"f16": "<f2", "f32": "<f4"}[metadata["dtype"]]
    rows, values = 0, np.zeros(levels)
    worst, beyond, squares, errors = (np.zeros(levels) for _ in range(4))
    places = [""] * levels
    rounding = 2.0**-11 if dtype == "<f2" else 0.0
    for file in files(table):
        for row in pq.read_table(file).to_pylist():
            pixels = crop_of(row, images, crops, size)
            with torch.no_grad():
                latent = encode(torch.from_numpy(pixels)[None].double())[0].numpy()
            for k, expected in enumerate(split(latent, levels)):
                stored = np.frombuffer(row[f"level_{k}"], dtype).astype(np.float64)
                error = stored - expected.ravel()
                if np.abs(error).max() > worst[k]:
                    worst[k], places[k] = np.abs(error).max(), row["source"]
                beyond[k] = max(beyond[k], (np.abs(error) - rounding * np.abs(expected.ravel())).max())
                errors[k] += (error**2).sum()
                squares[k] += (expected**2).sum()
                values[k] += error.size
            rows += 1
    rms = np.sqrt(squares / values)
    print(f"{rows} rows of {size} pixels, {'the same crops' if crops else 'crops by PIL'}")
    for k in range(levels):
        print(
            f"  level {k}: {values[k]:.0f} values, rms {rms[k]:.4f}, worst error {worst[k]:.2e} ({places[k]}), "
            f"rms error {np.sqrt(errors[k] / values[k]):.2e}"
        )
    expected = sum(1 for _ in crops.rglob("*.png")) if crops else max(rows, 1)
    if rows != expected:
        sys.exit(f"the table has {rows} rows, expected {expected}")
    return (beyond / rms).max(), (np.sqrt(errors / values) / rms).max()


def random_weights(folder, widths):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    shape = dict(block_out_channels=widths, layers_per_block=2, latent_channels=4)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    AutoencoderKL(**shape, **blocks).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--crops", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.random:
        folder, *widths = arguments.places
        widths = [int(width) for width in str(widths[0]).split(",")] if widths else [128, 256, 512, 512]
        return random_weights(folder, widths)
    worst, spread = compare(*arguments.places, arguments.crops)
    # With the same crops the root mean square error is f16's rounding. The worst value of 200
    # images was 4.0e-3 beyond it, in f16; in f32 37 of them agreed to 1.6e-4. What sets that one
    # value apart is not known yet.
    worst_max, spread_max = (1e-2, 4e-4) if arguments.crops else (0.5, 2e-2)
    print(f"  worst error beyond f16's rounding / rms {worst:.1e} (bound {worst_max}), rms error / rms {spread:.1e} (bound {spread_max})")
    if worst > worst_max or spread > spread_max:
        sys.exit("the table differs from PyTorch and numpy")


if __name__ == "__main__":
    main()
