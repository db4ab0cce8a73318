"""First inputs for the fuzz targets: the goldens, alone and in small archives.

    python seeds.py        # needs pyarrow; writes corpus/TARGET/*
"""

import io
import pathlib
import shutil
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
GOLDENS = HERE.parent / "tests" / "golden" / "decode"
SMALL = ["rgb-420.jpg", "gray.png", "lossy.webp"]


def folder(target):
    path = HERE / "corpus" / target
    path.mkdir(parents=True, exist_ok=True)
    return path


def images():
    for path in GOLDENS.iterdir():
        if path.name.endswith(".rgb.png"):
            continue
        target = {".jpg": "jpeg", ".jpeg": "png"}.get(path.suffix, path.suffix[1:])
        shutil.copy(path, folder(target) / path.name)


def members():
    return [(f"{index % 2}/{name}", (GOLDENS / name).read_bytes()) for index, name in enumerate(SMALL)]


def tars():
    for name, kind in [("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)]:
        with tarfile.open(folder("tar") / name, "w", format=kind) as tar:
            for key, content in [*members(), ("0/rgb-420.cls", b"3"), ("long/" * 40 + "a.png", b"")]:
                info = tarfile.TarInfo(key)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def zips():
    for name, method in [("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)]:
        with zipfile.ZipFile(folder("zip") / name, "w", method) as archive:
            for key, content in members():
                archive.writestr(key, content)
            archive.writestr("dataset.json", '{"labels": [["0/rgb-420.jpg", 1]]}')


def parquets():
    rows = [{"bytes": content, "path": key} for key, content in members()]
    table = pa.table({"image": rows, "label": pa.array([0, 1, 2], pa.int64())})
    for codec in ["none", "snappy", "zstd"]:
        pq.write_table(table, folder("parquet") / codec, compression=codec, row_group_size=2)


def lmdbs():
    shutil.copy(GOLDENS.parent / "lmdb" / "faces.lmdb" / "data.mdb", folder("lmdb") / "faces")


if __name__ == "__main__":
    images()
    tars()
    zips()
    parquets()
    lmdbs()
