"""Opens datasets that `cargo run --example fixture` wrote with other projects' readers.

Usage: readers.py DATASET f16|bf16|f32 mean|moments ROWS
Every reader must give every value of the fixture's formula, bit for bit.
"""
import json
import pathlib
import re
import sys
import zlib

import datasets
import duckdb
import numpy
import polars
import pyarrow.dataset
import pyarrow.parquet
import torch
from deltalake import DeltaTable

SHAPES = [(2, 4, 6), (2, 2, 3)]


def expected(identifier, payload, shape, dtype):
    """The fixture's values as stored bytes."""
    count = int(numpy.prod(shape))
    steps = (31 * identifier + 17 * payload + 7 * numpy.arange(count)) % 97
    values = torch.from_numpy((steps / 8 - 6).astype(numpy.float32))
    kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    return values.to(kind).view(torch.uint8).numpy().tobytes()


def check(name, rows, dtype, posterior, count):
    """`rows` are dicts by column; every column of every row is compared."""
    prefix = "mean_level_" if posterior == "moments" else "level_"
    columns = [(f"{prefix}{k}", shape) for k, shape in enumerate(SHAPES)]
    if posterior == "moments":
        columns.append(("logvar", SHAPES[0]))
    assert sorted(row["id"] for row in rows) == list(range(count)), name
    for row in rows:
        i = row["id"]
        found = tuple(row[c] for c in ("label", "source", "width", "height", "view"))
        assert found == (i % 3 - 1, f"class/{i}.jpg", 640, 480 + i, i % 2), (name, found)
        assert bytes(row["sha256"]) == bytes([i % 256] * 32), name
        for payload, (column, shape) in enumerate(columns):
            assert bytes(row[column]) == expected(i, payload, shape, dtype), (name, i, column)
    print(f"ok {name}: {count} rows")


def check_torch(uri, dtype, count):
    """The documented PyTorch dataset, taken out of the documentation itself."""
    page = pathlib.Path(__file__).parents[3] / "docs" / "dataset-format.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    code = next(block for block in blocks if "class Latents" in block)
    namespace = {}
    exec(code, namespace)
    latents = namespace["Latents"](uri)
    assert len(latents) == count
    ids = latents.rows["id"].to_pylist()
    for i in range(count):
        levels, label = latents[i]
        assert label == ids[i] % 3 - 1
        for payload, (level, shape) in enumerate(zip(levels, SHAPES)):
            assert level.shape == shape
            assert level.view(torch.uint8).numpy().tobytes() == expected(ids[i], payload, shape, dtype)
    loader = torch.utils.data.DataLoader(latents, batch_size=7, shuffle=True)
    assert sum(len(labels) for _, labels in loader) == count
    print("ok PyTorch dataset of the documentation")


def check_log(table, files):
    """The commit's checksums and sums, recomputed as the format's page says."""
    adds = table.get_add_actions(flatten=True)
    assert sum(adds.column("num_records").to_pylist()) == sum(
        pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in files
    )
    log = sorted(pathlib.Path(files[0]).parents[1].glob("_delta_log/*.json"))
    for commit in log:
        for line in commit.read_text().splitlines():
            if "add" not in (action := json.loads(line)):
                continue
            data = (commit.parents[1] / action["add"]["path"]).read_bytes()
            summary = json.loads(action["add"]["stats"])["lapflow"]
            start = 0
            for group in summary["rowGroups"]:
                for end, crc in zip(group["ends"], group["crcs"], strict=True):
                    assert zlib.crc32(data[start:end]) == crc
                    start = end
            assert zlib.crc32(data[start:]) == summary["footerCrc"]
    print("ok checksums of the log")


def main(uri, dtype, posterior, count):
    count = int(count)
    table = DeltaTable(uri)
    files = [file.removeprefix("file://") for file in table.file_uris()]
    check("deltalake", table.to_pyarrow_table().to_pylist(), dtype, posterior, count)
    arrow = pyarrow.dataset.dataset(files).to_table()
    field = arrow.schema.field("mean_level_1" if posterior == "moments" else "level_1")
    assert field.metadata[b"lapflow.shape"] == b"[2,2,3]", field.metadata
    assert field.metadata[b"lapflow.dtype"].decode() == dtype
    check("pyarrow", arrow.to_pylist(), dtype, posterior, count)
    check("polars", polars.scan_delta(uri).collect().to_dicts(), dtype, posterior, count)
    relation = duckdb.read_parquet(files)
    rows = [dict(zip(relation.columns, row)) for row in relation.fetchall()]
    check("duckdb", rows, dtype, posterior, count)
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    check("datasets, streaming", list(stream), dtype, posterior, count)
    whole = datasets.load_dataset("parquet", data_files=files, split="train", keep_in_memory=True)
    check("datasets", list(whole), dtype, posterior, count)
    check_log(table, files)
    check_torch(uri, dtype, count)


if __name__ == "__main__":
    main(*sys.argv[1:])
