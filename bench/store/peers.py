"""Other projects' loaders on the same samples: f16 4x32x32 + 4x16x16, shuffled, batch 256.

Usage: peers.py write NAME DIR ROWS | peers.py read NAME DIR | peers.py resume NAME DIR ROWS
NAME: mosaic webdataset datasets datasets-stream litdata pyarrow (DIR of the last is a lapflow
dataset's `data` folder); or `read floor DIR`: zstd decompression alone and a memcpy.
One process; every reader ends with contiguous buffers of a batch. Prints one JSON line: samples
per second of wall time and of processor time from the first batch of each epoch on, and the
time to the first batch of all. `resume` is given what each project saves of a run that stopped in
the middle of an epoch (made first, by another process), and times the first batch after it;
WebDataset and map-style `datasets` save nothing and read the half again.
"""
import glob
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import time

import numpy

BATCH = 256
# What a process reads first, a virtual machine may have to find the memory for: the fast ones read
# for long enough that this does not count.
EPOCHS, EPOCHS_PYARROW = 3, 10
SIZES = (4 * 32 * 32 * 2, 4 * 16 * 16 * 2)
DRAWN = 512


def samples(rows):
    generator = numpy.random.default_rng(0)
    drawn = [
        [generator.standard_normal(size // 2).astype(numpy.float16).tobytes() for size in SIZES]
        for _ in range(DRAWN)
    ]
    for i in range(rows):
        levels = drawn[i % DRAWN]
        yield {"id": i, "label": i % 1000, "level_0": levels[0], "level_1": levels[1]}


def collate(rows):
    """Rows as contiguous buffers, the way every reader here is asked for them."""
    levels = [numpy.frombuffer(b"".join(r[f"level_{k}"] for r in rows), numpy.float16) for k in (0, 1)]
    return [r["id"] for r in rows], [r["label"] for r in rows], levels


def batched(rows):
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield collate(batch)
            batch = []


def write_mosaic(folder, rows):
    from streaming import MDSWriter

    columns = {"id": "int", "label": "int", "level_0": "bytes", "level_1": "bytes"}
    with MDSWriter(out=folder, columns=columns, size_limit=1 << 26) as out:
        for sample in samples(rows):
            out.write(sample)


def read_mosaic(folder):
    import torch
    from streaming import StreamingDataset

    data = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    yield from torch.utils.data.DataLoader(data, batch_size=BATCH, collate_fn=collate)


def write_webdataset(folder, rows):
    os.makedirs(folder)
    for i, sample in enumerate(samples(rows)):
        if i % 5000 == 0:
            tar = tarfile.open(f"{folder}/{i // 5000:05}.tar", "w")
        label = json.dumps({"id": sample["id"], "label": sample["label"]}).encode()
        for name, data in (("l0", sample["level_0"]), ("l1", sample["level_1"]), ("json", label)):
            info = tarfile.TarInfo(f"{i:08}.{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if (i + 1) % 5000 == 0 or i + 1 == rows:
            tar.close()


def read_webdataset(folder):
    import webdataset

    shards = sorted(glob.glob(f"{folder}/*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(8192)
    rows = (
        {**json.loads(s["json"]), "level_0": s["l0"], "level_1": s["l1"]} for s in data
    )
    yield from batched(rows)


def write_datasets(folder, rows):
    import pyarrow
    import pyarrow.parquet

    os.makedirs(folder)
    rows = list(samples(rows))
    for start in range(0, len(rows), 5000):
        table = pyarrow.Table.from_pylist(rows[start : start + 5000])
        pyarrow.parquet.write_table(
            table, f"{folder}/{start:08}.parquet", compression="zstd", row_group_size=1000,
            use_dictionary=False,
        )


def read_datasets(folder):
    import datasets

    files = sorted(glob.glob(f"{folder}/*.parquet"))
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=f"{folder}/cache")
    for batch in data.shuffle(seed=0).with_format("arrow").iter(BATCH):
        yield collate(batch.to_pylist())


def datasets_stream(folder):
    import datasets

    files = sorted(glob.glob(f"{folder}/*.parquet"))
    data = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    return data.shuffle(seed=0, buffer_size=8192)


def read_datasets_stream(folder):
    yield from batched(datasets_stream(folder))


def one(sample):
    return sample


def write_litdata(folder, rows):
    import litdata

    litdata.optimize(
        fn=one, inputs=list(samples(rows)), output_dir=folder, chunk_bytes="64MB", num_workers=1
    )


def litdata_loader(folder):
    import litdata

    data = litdata.StreamingDataset(folder, shuffle=True)
    return litdata.StreamingDataLoader(data, batch_size=BATCH, collate_fn=collate)


def read_litdata(folder):
    yield from litdata_loader(folder)


def read_pyarrow(folder):
    """Whole row groups in random order, rows not mixed: the simplest thing that is fast."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_cpu_count(1)
    files = [pyarrow.parquet.ParquetFile(path) for path in glob.glob(f"{folder}/*.parquet")]
    groups = [(file, group) for file in files for group in range(file.num_row_groups)]
    random.Random(0).shuffle(groups)
    columns = ["id", "label", "level_0", "level_1"]
    for file, group in groups:
        table = file.read_row_group(group, columns=columns, use_threads=False)
        yield table["id"].to_numpy(), table["label"].to_numpy(), table


def mosaic_loader(folder):
    from streaming import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    return StreamingDataLoader(data, batch_size=BATCH, collate_fn=collate)


# What is iterated and can say where it is: as batches, or as rows to be batched.
STATEFUL = {"mosaic": mosaic_loader, "litdata": litdata_loader, "datasets-stream": datasets_stream}


def stop(name, folder, rows):
    """Reads half an epoch and saves where it is."""
    data = STATEFUL[name](folder)
    batches = batched(data) if name == "datasets-stream" else iter(data)
    for _ in range(rows // BATCH // 2):
        next(batches)
    with open(f"{folder}.state", "wb") as file:
        pickle.dump(data.state_dict(), file)


def resume(name, folder, rows):
    """Seconds to the first batch of the second half, in a process that starts with this."""
    wall = time.perf_counter()
    if name in STATEFUL:
        with open(f"{folder}.state", "rb") as file:
            state = pickle.load(file)
        data = STATEFUL[name](folder)
        data.load_state_dict(state)
        batches = batched(data) if name == "datasets-stream" else iter(data)
    else:
        batches = iter(globals()[f"read_{name}"](folder))
        for _ in range(rows // BATCH // 2):
            next(batches)
    next(batches)
    print(json.dumps({"name": name, "resume_s": round(time.perf_counter() - wall, 3)}))


def read_floor(_folder):
    """What no reader of compressed latents can beat, as MB of latents a processor second."""
    import zstandard

    page = b"".join(s["level_0"] for s in samples(16))
    packed = zstandard.ZstdCompressor(level=1).compress(page)
    unpack = zstandard.ZstdDecompressor()
    result = {}
    for name, work in (("zstd", lambda: unpack.decompress(packed)), ("memcpy", lambda: bytearray(page))):
        started = time.process_time()
        for _ in range(4000):
            work()
        result[f"{name}_MB_per_cpu_s"] = round(4000 * len(page) / (time.process_time() - started) / 1e6)
    print(json.dumps({"name": "floor", **result, "ratio": round(len(packed) / len(page), 3)}))


def main():
    command, name, folder, *rest = sys.argv[1:]
    if command == "stop":
        return stop(name, folder, int(rest[0]))
    if command == "resume":
        if name in STATEFUL:
            subprocess.run([sys.executable, __file__, "stop", name, folder, *rest], check=True)
        return resume(name, folder, int(rest[0]))
    function = globals()[f"{command}_{name.replace('-', '_')}"]
    wall, processor = time.perf_counter(), time.process_time()
    if command == "write":
        function(folder, int(rest[0]))
        rate = round(int(rest[0]) / (time.perf_counter() - wall))
        print(json.dumps({"name": name, "write_samples_per_s": rate}))
        return
    if name == "floor":
        return function(folder)
    count, elapsed, used, first = 0, 0, 0, None
    for _ in range(EPOCHS_PYARROW if name == "pyarrow" else EPOCHS):
        batches = iter(function(folder))
        next(batches)
        first = first or time.perf_counter() - wall
        wall, processor = time.perf_counter(), time.process_time()
        count += sum(len(batch[0]) for batch in batches)
        elapsed += time.perf_counter() - wall
        used += time.process_time() - processor
    print(json.dumps({
        "name": name, "samples_per_s": round(count / elapsed),
        "samples_per_cpu_s": round(count / used), "first_batch_s": round(first, 3),
    }))


if __name__ == "__main__":
    main()
