"""A 50,000-image set drawn in shards, killed and resumed: is it whole, equal and cheap in memory?

    python set.py --lapflow ../../target/release/lapflow --count 50000 --size 64 --out FOLDER

The network is as small as can be and its weights are random, so that the job around it is what is
measured: noise, PNG stages, decoding by no autoencoder, and the streamed .npz. Three shards fill one
set; the first is killed with SIGKILL and run again. Then every 200th image is drawn once more, by
another shard count and batch size, and compared bit for bit.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

WIDTH = 32


def checkpoint(path, size):
    """Two levels of size x size pixels in patches of a sixteenth of the side, one block."""
    patch = size // 16
    generator, tensors = torch.Generator().manual_seed(0), {}

    def linear(name, inputs, outputs):
        tensors[f"model.{name}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        tensors[f"model.{name}.bias"] = torch.zeros(outputs)

    linear("t_embedder.mlp.0", 256, WIDTH)
    linear("t_embedder.mlp.2", WIDTH, WIDTH)
    tensors["model.y_embedder.embedding_table.weight"] = torch.randn(4, WIDTH, generator=generator)
    linear("cond_tokens.time", WIDTH, WIDTH)
    linear("cond_tokens.label", WIDTH, WIDTH)
    for level in (".level0", ".level1"):
        linear(f"x_embedder{level}.proj", 3 * patch**2, WIDTH)
        linear(f"final_layer{level}.adaLN_modulation.1", WIDTH, 2 * WIDTH)
        linear(f"final_layer{level}.linear", WIDTH, 3 * patch**2)
        linear(f"blocks.0.attn.qkv{level}", WIDTH, 3 * WIDTH)
    linear("blocks.0.adaLN_modulation.1", WIDTH, 6 * WIDTH)
    linear("blocks.0.attn.proj", WIDTH, WIDTH)
    linear("blocks.0.mlp.fc1", WIDTH, 4 * WIDTH)
    linear("blocks.0.mlp.fc2", 4 * WIDTH, WIDTH)
    card = {
        "version": 1, "step": 0,
        "model": {"preset": "Ti", "width": WIDTH, "depth": 1, "heads": 2, "patch": patch},
        "flow": {"levels": 2},
        "geometry": {"channels": 3, "height": size, "width": size, "levels": 2, "classes": 3},
        "normalization": {"shift": [0.0] * 3, "scale": [40.0] * 3},  # faint noise: small files
        "autoencoder": {"architecture": "pixel", "sha256": None, "channels": 3, "factor": 1, "scale": 1.0, "shift": 0.0},
        "autoencoder_config": {"weights": "pixel"}, "classes": ["a", "b", "c"],
    }
    save_file(tensors, path, metadata={"lapflow": json.dumps(card)})


def start(arguments, out, shard, batch):
    command = [arguments.lapflow, "--json", "sample", str(arguments.out / "tiny.safetensors"), "--out", str(out),
               "--count", str(arguments.count), "--solver", "euler", "--steps", "1", "--seed", "5",
               "--shard", shard, "--batch", str(batch)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process):
    """The job's own summary and its peak memory in bytes, which this process's own bounds from below."""
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return json.loads(text), usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lapflow", default="../../target/release/lapflow")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--kill-after", type=float, default=10)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint(arguments.out / "tiny.safetensors", arguments.size)
    whole, again = arguments.out / "set.npz", arguments.out / "again"

    begin = time.time()
    killed = start(arguments, whole, "0/3", 64)
    time.sleep(arguments.kill_after)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    print(f"shard 0/3 killed after {arguments.kill_after:.0f} s", flush=True)
    for shard, batch in (("1/3", 50), ("0/3", 64), ("2/3", 33)):
        summary, peak = finish(start(arguments, whole, shard, batch))
        print(f"shard {shard}, batch {batch}: {summary['found']} found, {summary['drawn']} drawn, "
              f"{summary['seconds']:.0f} s, peak memory at most {peak / 2**20:.0f} MiB", flush=True)
    assert summary["complete"]
    images = np.load(whole)["arr_0"]
    assert images.shape == (arguments.count, arguments.size, arguments.size, 3) and images.dtype == np.uint8
    print(f"{whole.name}: arr_0 {images.shape} {images.dtype}, {images.nbytes / 2**20:.0f} MiB of pixels, "
          f"{time.time() - begin:.0f} s in all", flush=True)

    finish(start(arguments, again, "7/200", 7))
    files = sorted(again.glob("*.png"))
    unequal = sum(not np.array_equal(np.asarray(Image.open(file)), images[int(file.stem)]) for file in files)
    print(f"{len(files)} images drawn again as shard 7/200 in batches of 7: {unequal} differ")
    assert files and not unequal


main()
