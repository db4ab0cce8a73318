"""Where in the pyramid a row's samples are off: Frechet distances of their latents from the photos', level by level.

    python levels.py ROW.. --autoencoder ENCODER DECODER --work DIR

DIR is where run.py has run the rows (seed 0). Samples and photos are encoded by the same command, so that what the
autoencoder does to pictures is in both.
"""

import json

import numpy
from deltalake import DeltaTable
from PIL import Image

import features
import run


def pictures(name, work):
    """The folder of a row's samples as PNGs, or of all photos."""
    if name == "photos":
        return work / "photos-all"
    folder = work / "levels" / name
    if not folder.exists():
        beside = folder.with_name(f"{name}.part")
        beside.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(features.images(work / f"{name}-0/samples.npz")):
            Image.fromarray(pixels).save(beside / f"{i:05}.png", compress_level=1)
        beside.rename(folder)
    return folder


def pyramid(name, size, args):
    """Coarse level, fine level and latents of all pictures, each (n, channels, side, side) in float64."""
    work = args.work / str(size)
    dataset = work / "levels" / f"{name}-dataset"
    data = {"source": str(pictures(name, work)), "dataset": str(dataset), "size": size, "levels": 2, "flip": False}
    own = {"data": data, "autoencoder": run.weight_files(args.autoencoder)}
    run.lapflow("encode", run.HERE / "base.toml", *run.settings(own))
    table = DeltaTable(str(dataset)).to_pyarrow_table()

    def level(name):
        shape = json.loads(table.schema.field(name).metadata[b"lapflow.shape"])
        values = [numpy.frombuffer(value, "<f2") for value in table[name].to_pylist()]
        return numpy.stack(values).reshape(-1, *shape).astype("f8")

    fine, coarse = level("level_0"), level("level_1")
    return coarse, fine, fine + coarse.repeat(2, 2).repeat(2, 3)


def distance(a, b):
    return features.frechet(a.reshape(len(a), -1), b.reshape(len(b), -1))


def main():
    parser = run.arguments(__doc__)
    args = parser.parse_args()
    size, *others = {run.size_of(name) for name in args.rows}
    if others:
        parser.error("the rows are of several sizes")
    photos = pyramid("photos", size, args)
    print("| row | coarse level | fine level | latents |\n|---|---|---|---|")
    for name in args.rows:
        of_levels = map(distance, pyramid(name, size, args), photos)
        print(f"| {name} |", " | ".join(f"{value:.1f}" for value in of_levels), "|", flush=True)


if __name__ == "__main__":
    main()
