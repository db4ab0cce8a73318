"""Distribution of the differences between lapflow's crops and PIL's ADM crop of the same files.

    cargo build --release --workspace --examples
    python parity.py FOLDER SIZE

Three figures: of the decoder alone (whole images, no resampling), of the crops in the exact mode,
and in the fast mode. Needs Pillow and numpy (13.0.0, with libjpeg-turbo 3.2.0, and 2.3 were used).
"""

import io
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from throughput import adm_pixels

EXAMPLES = pathlib.Path(__file__).parents[2] / "target/release/examples"


class Differences:
    def __init__(self):
        self.counts = np.zeros(256, np.int64)
        self.files = self.files_that_differ = 0

    def add(self, ours, pil):
        assert ours.shape == pil.shape, (ours.shape, pil.shape)
        levels = np.bincount(np.abs(ours.astype(np.int16) - pil).ravel(), minlength=256)
        self.counts += levels
        self.files += 1
        self.files_that_differ += bool(levels[1:].any())

    def __str__(self):
        share = 100 * self.counts / self.counts.sum()
        mse = (share / 100 * np.arange(256.0) ** 2).sum()
        worst = np.flatnonzero(self.counts)[-1]
        psnr = f", PSNR {10 * np.log10(255**2 / mse):.1f} dB" if mse else ""
        return (
            f"equal {share[0]:.4f}%, within 1 {share[:2].sum():.5f}%, within 3 "
            f"{share[:4].sum():.5f}%, worst {worst}{psnr}; {self.files_that_differ} of "
            f"{self.files} files differ"
        )


def rgb(path):
    return np.asarray(Image.open(path).convert("RGB"))


def main(folder, size):
    paths = sorted(path for path in pathlib.Path(folder).rglob("*.*") if path.is_file())
    decoder = Differences()
    for path in paths:
        ppm = subprocess.run([EXAMPLES / "decode", path], check=True, capture_output=True).stdout
        decoder.add(rgb(io.BytesIO(ppm)), rgb(path))
    print(f"decoder     {decoder}")
    pil = [adm_pixels(path, size) for path in paths]
    for mode in ["exact", "fast"]:
        crops = Differences()
        with tempfile.TemporaryDirectory() as out:
            command = [EXAMPLES / "crops", folder, str(size), out, mode]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for path, pixels in zip(paths, pil):
                target = pathlib.Path(out) / path.relative_to(folder).with_suffix(".png")
                crops.add(rgb(target), pixels)
        print(f"crop {mode:5}  {crops}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
