"""Decode + ADM crop: lapflow's stream against PIL with two worker processes.

    cargo build --release --workspace --example throughput
    python throughput.py FOLDER SIZE [ROUNDS]

Needs Pillow and numpy (13.0.0 and 2.3 were used). The peers take turns, round by round, so that
whatever else the machine does hits both; the printed ratios are those of the medians. `entropy`
undoes the Huffman coding and no more: what no decoder of every file can pass.
"""

import pathlib
import resource
import statistics
import subprocess
import sys
import time
from multiprocessing import Pool

import numpy as np
from PIL import Image

WORKERS = 2
MODES = ["exact", "fast", "entropy"]
BINARY = pathlib.Path(__file__).parents[2] / "target/release/examples/throughput"


def adm_pixels(path, size):
    image = Image.open(path).convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.BICUBIC)
    pixels = np.array(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def adm(path, size):
    """Processor seconds of the crop, without sending it to the parent process."""
    start = time.process_time()
    adm_pixels(path, size)
    return time.process_time() - start


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def lapflow(folder, size, mode, count):
    """Images a second by the clock, in the second of two rounds, and by the processors' time."""
    before = processor_seconds()
    command = [BINARY, folder, str(size), str(WORKERS), "2", mode]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # The first round warms the new process up, as the pool is warm.
    return float(output.split()[-1]), 2 * count / (processor_seconds() - before)


def main(folder, size, rounds):
    paths = sorted(path for path in pathlib.Path(folder).rglob("*.*") if path.is_file())
    rates = {name: [] for name in ["PIL", *MODES]}
    with Pool(WORKERS) as pool:
        jobs = [(path, size) for path in paths]
        pool.starmap(adm, jobs[:16])
        for _ in range(rounds):
            start = time.perf_counter()
            spent = sum(pool.starmap(adm, jobs, chunksize=4))
            elapsed = time.perf_counter() - start
            rates["PIL"].append((len(paths) / elapsed, len(paths) / spent))
            for mode in MODES:
                rates[mode].append(lapflow(folder, size, mode, len(paths)))
    for unit, index in [("second", 0), ("processor second", 1)]:
        medians = {name: statistics.median(r[index] for r in rates[name]) for name in rates}
        print(f"images a {unit}, median of {rounds} (range), times PIL")
        for name, median in medians.items():
            found = [rate[index] for rate in rates[name]]
            spread = f"({min(found):.1f}..{max(found):.1f})"
            print(f"  {name:8} {median:7.1f} {spread:18} {median / medians['PIL']:5.2f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5)
