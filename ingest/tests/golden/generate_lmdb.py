"""A golden LMDB environment by liblmdb, in the layout of LFM's CelebA-HQ.

Run in this folder with numpy, Pillow and lmdb (3.0.0 was used):
    python generate_lmdb.py
Writes lmdb/faces.lmdb/data.mdb: 130 squares of 4x4 RGB pixels under the keys `0` to `129`, so that
the tree has branches; `130` of 40x40, which is in pages of its own; `131`, a PNG; and `length`.
Pixel (x, y) of image k is (k, x, y). Several commits, one of them a deletion, leave stale pages.
"""

import io
import pathlib

import lmdb
import numpy as np
from PIL import Image

FOLDER = pathlib.Path(__file__).parent / "lmdb" / "faces.lmdb"


def square(number, side):
    y, x = np.mgrid[0:side, 0:side]
    return np.stack([np.full_like(x, number), x, y], -1).astype(np.uint8)


def main():
    (FOLDER / "data.mdb").unlink(missing_ok=True)
    with lmdb.open(str(FOLDER), map_size=1 << 20) as env:
        for numbers in [range(0, 130, 2), range(1, 130, 2)]:
            with env.begin(write=True) as transaction:
                for number in numbers:
                    transaction.put(str(number).encode(), square(number, 4).tobytes())
                transaction.put(b"stale", b"to be deleted")
        with env.begin(write=True) as transaction:
            transaction.delete(b"stale")
            transaction.put(b"130", square(130, 40).tobytes())
            png = io.BytesIO()
            Image.fromarray(square(131, 4)).save(png, "PNG")
            transaction.put(b"131", png.getvalue())
            transaction.put(b"length", b"132")
    (FOLDER / "lock.mdb").unlink()


if __name__ == "__main__":
    main()
