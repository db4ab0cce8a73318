"""Compares a run on the CPU with one on another device: latents, losses, weights, samples.

    python compare.py RUN_CPU RUN_OTHER
"""

import json
import pathlib
import sys

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

failed = False


def check(name, ours, theirs, bound):
    global failed
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-50)
    fits = ours.shape == theirs.shape and error <= bound
    print(f"{name}: {ours.size} values, largest difference / largest value {error:.1e} (bound {bound:.0e})")
    failed |= not fits


def levels(run, name="dataset"):
    rows = [row for file in sorted((run / name).glob("**/*.parquet")) if "_delta_log" not in str(file)
            for row in pq.read_table(file).to_pylist()]
    rows.sort(key=lambda row: row["id"])
    return [np.concatenate([np.frombuffer(row[f"level_{k}"], "<f2") for row in rows] or [[]]) for k in range(2)]


def tensors(run, name="run"):
    groups = {}
    for key, tensor in sorted(load_file(max((run / name / "checkpoints").glob("step-*.safetensors"))).items()):
        if tensor.dtype == np.float32:
            groups.setdefault(key.split(".")[0], []).append(tensor.ravel())
    return {group: np.concatenate(values) for group, values in groups.items()}


def losses(run, name="run"):
    return [json.loads(line)["loss"] for line in (run / name / "metrics.jsonl").read_text().splitlines()]


cpu, other = (pathlib.Path(path) for path in sys.argv[1:])
for k, pair in enumerate(zip(levels(cpu), levels(other))):
    check(f"level {k} of the encoded images (f16)", *pair, 2e-3)
check("losses of 6 steps", losses(cpu), losses(other), 1e-5)
theirs = tensors(other)
for group, values in tensors(cpu).items():
    check(f"{group} after 6 steps, one resume", values, theirs[group], 1e-5)
for group, values in tensors(other, "ranks").items():
    check(f"{group} after 6 steps on two ranks, one resume", tensors(cpu)[group], values, 1e-5)
unwaited = levels(other, "unwaited")
off = [np.abs(a - b).max() if a.shape == b.shape else "missing" for a, b in zip(levels(cpu), unwaited)]
print("images encoded where nothing waits for a copy: levels off by", *off)
failed |= any(not isinstance(gap, str) and gap < 0.1 for gap in off)
wrong = losses(other, "unwaited")[:1] if (other / "unwaited/metrics.jsonl").exists() else []
print("two ranks whose streams do not wait for each other: loss", wrong or "of a crash")
# A step that was skipped for not being finite has no loss, and was found.
failed |= any(loss is not None and abs(loss / losses(cpu)[0] - 1) < 1e-3 for loss in wrong)
check("losses of 6 steps in bf16, recomputed", losses(cpu, "bf16"), losses(other, "bf16"), 1e-2)
check("model after them", tensors(cpu, "bf16")["model"], tensors(other, "bf16")["model"], 1e-2)
check("samples, levels of 255", np.load(cpu / "samples.npz")["arr_0"], np.load(other / "samples.npz")["arr_0"], 1.5 / 255)
check("model after the demo", tensors(cpu, "demo/run")["model"], tensors(other, "demo/run")["model"], 1e-3)
pictures = [np.asarray(Image.open(run / "demo/samples.png"), np.float64) for run in (cpu, other)]
check("its samples, levels of 255", *pictures, 1.5 / 255)
sys.exit(failed)
