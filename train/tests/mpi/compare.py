"""Compares losses and final weights of two runs: python compare.py RUN_A RUN_B"""

import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file


def weights(run):
    tensors = load_file(max((run / "checkpoints").glob("step-*.safetensors")))
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors) if name.startswith(("model.", "ema."))])


def losses(run):
    return np.array([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])


a, b = (pathlib.Path(path) for path in sys.argv[1:])
loss = np.abs(losses(a) / losses(b) - 1).max()
weight = np.abs(weights(a) - weights(b)).max() / np.abs(weights(a)).max()
print(f"{a.name} and {b.name}: losses differ by {loss:.1e} of them, weights by {weight:.1e} of the largest")
sys.exit(int(loss > 1e-5 or weight > 1e-4))
