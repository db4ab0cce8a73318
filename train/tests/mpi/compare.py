"""Compares losses and final weights of two runs: python compare.py RUN_A RUN_B"""

import json
import pathlib
import sys

import numpy as np


def weights(run):
    raw = max((run / "checkpoints").glob("step-*.safetensors")).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    chosen = sorted(name for name in header if name.startswith(("model.", "ema.")))
    offsets = [header[name]["data_offsets"] for name in chosen]
    return np.concatenate([np.frombuffer(raw[8 + length + a : 8 + length + b], "<f4") for a, b in offsets])


def losses(run):
    return np.array([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])


a, b = (pathlib.Path(path) for path in sys.argv[1:])
loss = np.abs(losses(a) / losses(b) - 1).max()
weight = np.abs(weights(a) - weights(b)).max() / np.abs(weights(a)).max()
print(f"{a.name} and {b.name}: losses differ by {loss:.1e} of them, weights by {weight:.1e} of the largest")
sys.exit(int(loss > 1e-5 or weight > 1e-4))
