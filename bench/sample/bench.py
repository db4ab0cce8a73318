"""lapflow's sampler beside PyTorch + torchdiffeq: same weights, noise and tolerances.

    python bench.py speed CHECKPOINT.. --batch 1 16 --tolerance 1e-5
    python bench.py savings CHECKPOINT --batch 8 --tolerance 1e-3 1e-4 1e-5
    python bench.py random S 2 OUT.safetensors

`speed` runs lapflow (torchdiffeq mode and default) and PyTorch in turns and prints their ratio, of
time and of processor time: on a machine that others use, the latter with --threads 1 is the measure;
more than one checkpoint (LapFlow's and LFM's, say) stand below each other. `savings` measures every
solver's error against PyTorch in float64 at a tolerance of 1e-8. `random` writes a checkpoint of
random weights: a preset's size, with so many levels, on 32x32x4 latents.

Build the other side first: cargo build --release --workspace --example integrate
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file

import peer

INTEGRATE = pathlib.Path(os.environ.get("INTEGRATE", pathlib.Path(__file__).parents[2] / "target/release/examples/integrate"))
# As the lapflow binary sets it for itself: Candle's idle threads sleep, the allocator keeps its pages.
ENVIRONMENT = dict(os.environ, CANDLE_BARRIER_POOL_SPIN_LIMIT="1", MIMALLOC_PURGE_DELAY="-1")


def lapflow(checkpoint, control, tolerance, batch):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.safetensors"
        options = {"control": control, "tolerance": tolerance, "batch": batch}
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        command = [str(INTEGRATE), checkpoint, str(out), *words]
        answer = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
        return json.loads(answer.stdout), load_file(out)


def inputs(net, tensors, dtype=torch.float32):
    noise = [tensors[f"noise.{k}"].to(dtype) for k in range(net.levels)]
    return noise, tensors["labels"].long()


def merged(levels):
    """The full-size latents of a pyramid."""
    y = levels[-1]
    for level in levels[-2::-1]:
        y = level + y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return y.double()


def final(tensors):
    return merged([tensors[f"final.{k}"] for k in range(sum(key.startswith("final.") for key in tensors))])


def error(state, reference):
    return ((state - reference).square().mean() / reference.square().mean()).sqrt().item()


def speed(arguments):
    for checkpoint in arguments.checkpoints:
        net = peer.Net(checkpoint)
        for batch in arguments.batch:
            names = ("torch", "torchdiffeq", "default")
            seconds, processor = ({name: [] for name in names} for _ in range(2))
            facts, state = {}, {}
            for _ in range(arguments.repeats):
                for control in ("torchdiffeq", "default"):
                    report, tensors = lapflow(checkpoint, control, arguments.tolerance[0], batch)
                    seconds[control] += report["seconds"]
                    processor[control] += report["processor_seconds"]
                    facts[control], state[control] = report, final(tensors)
                noise, labels = inputs(net, tensors)
                begin, used = time.perf_counter(), time.process_time()
                levels, evaluations = peer.sample(net, noise, labels, arguments.tolerance[0])
                seconds["torch"].append(time.perf_counter() - begin)
                processor["torch"].append(time.process_time() - used)
            best = {name: min(times) for name, times in seconds.items()}
            cost = {name: min(times) for name, times in processor.items()}
            nfe = {name: statistics.mean(fact["evaluations"]) for name, fact in facts.items()}
            difference = error(state["torchdiffeq"], merged(levels))
            print(f"{checkpoint}, batch {batch}, tolerance {arguments.tolerance[0]:g}, best of {arguments.repeats}")
            print(f"  PyTorch + torchdiffeq  {best['torch'] / batch:8.3f} s an image ({cost['torch'] / batch:.3f} of "
                  f"processor time)  {evaluations} NFE")
            for name in ("torchdiffeq", "default"):
                print(f"  lapflow, {name:<12}  {best[name] / batch:8.3f} s an image ({cost[name] / batch:.3f})  "
                      f"{nfe[name]:.1f} NFE  {facts[name]['macs_per_image'] / 1e9:.2f} GMACs  "
                      f"{best['torch'] / best[name]:.2f} x PyTorch (processor time {cost['torch'] / cost[name]:.2f} x)")
            print(f"  same state as PyTorch's to {difference:.1e}", flush=True)


def savings(arguments):
    checkpoint, batch = arguments.checkpoints[0], arguments.batch[0]
    exact = peer.Net(checkpoint, torch.float64)
    _, tensors = lapflow(checkpoint, "default", 1e-2, batch)
    noise, labels = inputs(exact, tensors, torch.float64)
    # An image at a time: the reference must not share step sizes.
    ends, evaluations = [], 0
    for i in range(batch):
        levels, count = peer.sample(exact, [x[i:i + 1] for x in noise], labels[i:i + 1], 1e-8)
        ends.append(merged(levels))
        evaluations += count
    reference = torch.cat(ends)
    print(f"{checkpoint}, {batch} images; reference: float64 at 1e-8, {evaluations / batch:.0f} NFE an image")
    for tolerance in arguments.tolerance:
        for control in ("torchdiffeq", "default"):
            report, tensors = lapflow(checkpoint, control, tolerance, batch)
            nfe, off = statistics.mean(report["evaluations"]), error(final(tensors), reference)
            print(f"  {tolerance:7g}  {control:<12} {nfe:7.1f} NFE  error {off:.2e}", flush=True)


def random(arguments):
    preset, levels, out = arguments.checkpoints
    levels, (width, depth, heads) = int(levels), peer.SIZES[preset]
    generator, tensors = torch.Generator().manual_seed(0), {}

    def linear(name, inputs, outputs, scale=1.0):
        tensors[f"model.{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * scale / inputs**0.5
        tensors[f"model.{name}.bias"] = torch.randn(outputs, generator=generator) * 0.02

    own = [f".level{k}" for k in range(levels)] if levels > 1 else [""]
    linear("t_embedder.mlp.0", 256, width)
    linear("t_embedder.mlp.2", width, width)
    tensors["model.y_embedder.embedding_table.weight"] = torch.randn(11, width, generator=generator) * 0.5
    for name in ("time", "label"):
        linear(f"cond_tokens.{name}", width, width)
    for level in own:
        linear(f"x_embedder{level}.proj", 16, width)
        linear(f"final_layer{level}.adaLN_modulation.1", width, 2 * width, 0.3)
        linear(f"final_layer{level}.linear", width, 16)
    for i in range(depth):
        linear(f"blocks.{i}.adaLN_modulation.1", width, 6 * width, 0.3)
        for level in own:
            linear(f"blocks.{i}.attn.qkv{level}", width, 3 * width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.fc1", width, 4 * width)
        linear(f"blocks.{i}.mlp.fc2", 4 * width, width)
    card = {
        "version": 1, "step": 0,
        "model": {"preset": preset, "patch": 2, "mask": "causal", "untied": ["embed", "qkv", "head"],
                  "cond_tokens": True, "time_scale": 1000.0},
        "flow": {"levels": levels, "starts": [], "coupling": "linear", "sigma": "linear", "noise": "laplacian"},
        "geometry": {"channels": 4, "height": 32, "width": 32, "levels": levels, "classes": 10},
        "normalization": {"shift": [0.0] * 4, "scale": [1.0] * 4},
        "autoencoder": {}, "autoencoder_config": {}, "classes": [str(i) for i in range(10)],
    }
    save_file(tensors, out, metadata={"lapflow": json.dumps(card)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "savings", "random"])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tolerance", type=float, nargs="+", default=[1e-5])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ENVIRONMENT["RAYON_NUM_THREADS"] = str(arguments.threads)
    {"speed": speed, "savings": savings, "random": random}[arguments.what](arguments)
