"""lapflow's training step beside the peer's, the processes one after the other, twice over.

Usage: compare.py STEP_SPEED_BINARY S|B BATCH STEPS [eager,compile]
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys

import torch

HERE = pathlib.Path(__file__).parent
# As the lapflow binary sets it for itself: its allocator keeps its pages. PyTorch does not read it.
ENVIRONMENT = os.environ | {"MIMALLOC_PURGE_DELAY": "-1"}


def matrix_rate():
    """Multiply-accumulates a second of PyTorch's 1536-wide f32 product on two threads."""
    import time

    torch.set_num_threads(2)
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    best = 1e9
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 1536**3 / best


def main(binary, size, batch, steps, modes="eager,compile"):
    commands = {"lapflow": [binary, size, batch, steps]}
    for mode in modes.split(","):
        commands[mode] = [sys.executable, str(HERE / "step.py"), size, batch, steps, mode]
    results = {}
    for _ in range(2 if size == "S" else 1):
        for name, command in commands.items():
            done = subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
            out = json.loads(done.stdout)
            known = results.setdefault(name, out | {"seconds": [[], []]})
            known["seconds"] = [a + b for a, b in zip(known["seconds"], out["seconds"])]
    rate = matrix_rate()
    macs = results["lapflow"]["macs"]
    print(f"{size}/2, batch {batch}; matrix rate {rate / 1e9:.1f} GMAC/s")
    assert len({out["parameters"] for out in results.values()}) == 1, "not the same network"
    table = {}
    for name, out in results.items():
        stages = [statistics.median(s) for s in out["seconds"]]
        table[name] = [int(batch) / s for s in stages] + [2 * int(batch) / sum(stages)]
        share = [3 * macs[k] * int(batch) / stages[k] / rate for k in range(2)]
        print(
            f"{name:8} finest {table[name][0]:6.2f} images/s ({share[0]:.0%} of the rate), "
            f"coarse {table[name][1]:6.2f} ({share[1]:.0%}), both in turn {table[name][2]:6.2f}"
        )
    peers = [name for name in table if name != "lapflow"]
    ratios = [table["lapflow"][i] / max(table[name][i] for name in peers) for i in range(3)]
    print("lapflow over the better peer: " + ", ".join(f"{r:.2f}" for r in ratios))


if __name__ == "__main__":
    main(*sys.argv[1:])
