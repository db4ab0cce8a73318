"""Samples of several rows side by side, one line a row from the same seeds.

    python grid.py OUT.png WORK/64 ROW..        # WORK as run.py has it, and the rows' size
"""

import pathlib
import sys

import numpy
from PIL import Image

COLUMNS = 12

out, work, *rows = sys.argv[1:]
lines = [numpy.load(pathlib.Path(work) / f"{row}-0/samples.npz")["arr_0"][:COLUMNS] for row in rows]
Image.fromarray(numpy.concatenate([numpy.concatenate(line, 1) for line in lines])).save(out, optimize=True)
