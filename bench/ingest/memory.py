"""Peak memory of lapflow's stream over 20-megapixel files.

    cargo build --release --workspace --example throughput
    python memory.py [FOLDER]

Writes 24 files of 5472x3648 pixels into FOLDER (a temporary one by default): baseline and
progressive JPEG, PNG and WebP. Streams them to 256 pixels with two threads, exact and fast, and
prints the peak resident set beside the same for files of 500x375. Needs Pillow and numpy.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

BINARY = pathlib.Path(__file__).parents[2] / "target/release/examples/throughput"
KINDS = [
    ("baseline.jpg", {"quality": 90}),
    ("progressive.jpg", {"quality": 90, "progressive": True}),
    ("rgb.png", {"compress_level": 1}),
    ("lossy.webp", {"quality": 80, "method": 0}),
]


def scene(width, height):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [127 + 90 * np.sin(x / a + y / b) for a, b in [(40, 70), (23, 90), (61, 33)]]
    noise = rng.normal(0, 6, (height, width, 3)).astype(np.float32)
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))


def write(folder, width, height):
    folder.mkdir(parents=True)
    image = scene(width, height)
    for name, options in KINDS:
        image.save(folder / f"0-{name}", **options)
        for copy in range(1, 6):
            shutil.copy(folder / f"0-{name}", folder / f"{copy}-{name}")


def peak_bytes(folder, mode):
    """In a process of its own, since the peak of children is that of the largest."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", code, BINARY, folder, "256", "2", "1", mode]
    return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(root):
    for name, (width, height) in {"500x375": (500, 375), "5472x3648": (5472, 3648)}.items():
        folder = root / name
        if not folder.exists():
            write(folder, width, height)
        for mode in ["exact", "fast"]:
            print(f"{name:10} {mode:6} {peak_bytes(folder, mode) / 2**20:8.0f} MiB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(pathlib.Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(pathlib.Path(folder))
