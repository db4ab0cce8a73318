"""FID of two real image folders: lapflow beside pytorch-fid, from images and from the same features.

    python fid.py --lapflow ../../target/release/lapflow FOLDER FOLDER --images 200

Both use one Inception with seeded random weights (the trained ones are not ours to ship: give them
with --weights, and both use those). The images are cropped and stored as PNGs once, so that both
decode the same bytes.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import pytorch_fid.inception
import torch
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance, get_activations


def random_weights(path):
    network = pytorch_fid.inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    # As pytorch-fid patches it: the names are the same, and only they matter here.
    generator, state = torch.Generator().manual_seed(0), network.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith(("running_var", "bn.weight")):
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
        elif value.dim() == 1:
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
        else:
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
    torch.save(state, path)


def crop(source, target, count):
    target.mkdir()
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in suffixes)[:count]
    for i, file in enumerate(files):
        Image.open(file).convert("RGB").resize((64, 64), Image.BICUBIC).save(target / f"{i:05}.png")
    return sorted(target.iterdir())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=2, type=pathlib.Path)
    parser.add_argument("--lapflow", default="../../target/release/lapflow")
    parser.add_argument("--weights", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        weights = arguments.weights or scratch / "inception.pth"
        if arguments.weights is None:
            random_weights(weights)
        pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: torch.load(weights)
        network = pytorch_fid.inception.InceptionV3([3]).eval()

        def lapflow(a, b):
            out = scratch / "scores.json"
            subprocess.run([arguments.lapflow, "eval", str(a), str(b), "--inception", str(weights), "--metrics", "fid",
                            "--allow-few", "--json", str(out)], check=True, capture_output=True)
            return json.loads(out.read_text())["fid"]

        sides, saved = [], []
        for i, folder in enumerate(arguments.folders):
            files = crop(folder, scratch / f"images{i}", arguments.images)
            features = get_activations(files, network, 20, 2048, "cpu", num_workers=0).astype(np.float64)
            sides.append((features.mean(0), np.cov(features, rowvar=False)))
            saved.append(scratch / f"statistics{i}.npz")
            np.savez(saved[-1], mu=sides[-1][0], sigma=sides[-1][1])
            print(f"{folder.name}: {len(files)} images, features {features.mean():.3f} +- {features.std():.3f}", flush=True)
        theirs = calculate_frechet_distance(*sides[0], *sides[1])
        print(f"pytorch-fid                   {theirs:.9g}")
        for name, value in (
            ("lapflow, the same statistics", lapflow(*saved)),
            ("lapflow, from the images", lapflow(scratch / "images0", scratch / "images1")),
        ):
            print(f"{name:<29} {value:.9g}  relative difference {abs(value / theirs - 1):.1e}", flush=True)


main()
