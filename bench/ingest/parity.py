"""Distribution of the differences between an export and PIL's ADM crop of the same files.

    lapflow ingest FOLDER --size S --out OUT
    python parity.py FOLDER S OUT

Where FOLDER holds PNGs the JPEG decoder takes no part, and what remains is the resampling:
convert a folder of JPEGs with PIL first to measure the two apart.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

from throughput import adm_pixels


def main(folder, size, out):
    counts = np.zeros(256, np.int64)
    for path in sorted(path for path in pathlib.Path(folder).rglob("*.*") if path.is_file()):
        target = pathlib.Path(out) / path.relative_to(folder).with_suffix(".png")
        if not target.exists():
            print(f"{path}: not in the export")
            continue
        ours = np.asarray(Image.open(target), np.int16)
        levels = np.abs(adm_pixels(path, size).astype(np.int16) - ours)
        counts += np.bincount(levels.ravel(), minlength=256)
    for level in np.flatnonzero(counts):
        print(f"{level:3} levels: {100 * counts[level] / counts.sum():.5f}%")
    print(f"within 1: {100 * counts[:2].sum() / counts.sum():.4f}%")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
