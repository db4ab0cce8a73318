"""Decode + ADM crop: lapflow's stream against PIL with two worker processes.

    cargo build --release -p lapflow-ingest --example throughput
    python throughput.py FOLDER SIZE [ROUNDS]

Needs Pillow and numpy (13.0.0 and 2.3 were used). The peers take turns, round by round, so that
whatever else the machine does hits both; the printed ratio is that of the medians.
"""

import pathlib
import statistics
import subprocess
import sys
import time
from multiprocessing import Pool

import numpy as np
from PIL import Image

WORKERS = 2
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
    """The crop, without sending it to the parent process."""
    return adm_pixels(path, size).shape


def main(folder, size, rounds):
    paths = sorted(path for path in pathlib.Path(folder).rglob("*.*") if path.is_file())
    ours, pil = [], []
    with Pool(WORKERS) as pool:
        jobs = [(path, size) for path in paths]
        pool.starmap(adm, jobs[:16])
        for _ in range(rounds):
            start = time.perf_counter()
            pool.starmap(adm, jobs, chunksize=4)
            pil.append(len(paths) / (time.perf_counter() - start))
            command = [BINARY, folder, str(size), str(WORKERS), "2"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            # The first round warms the new process up, as the pool is warm.
            ours.append(float(output.split()[-1]))
    for name, rates in [("PIL", pil), ("lapflow", ours)]:
        print(f"{name:8} {statistics.median(rates):7.1f} images/s ({min(rates):.1f}..{max(rates):.1f})")
    print(f"ratio    {statistics.median(ours) / statistics.median(pil):.2f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5)
