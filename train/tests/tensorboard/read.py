"""Reads a run's event files with TensorBoard's own reader, beside what the run folder says.

Usage: read.py RUN_FOLDER
Every value of metrics.jsonl must be a scalar there, every grid in samples/ an image, and nothing
else may be there.
"""
import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(line):
    named = {key: value for key, value in line.items() if key not in ("step", "levels")}
    for key, value in line["levels"].items():
        stage, level = key.split("/")
        named[f"loss/stage_{stage}/level_{level}"] = value
    return named


def main(run):
    run = pathlib.Path(run)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {}
    for line in lines:
        for tag, value in scalars(line).items():
            value = struct.unpack("f", struct.pack("f", value))[0]
            expected.setdefault(tag, []).append((line["step"], value))
    found = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    assert expected, "no metrics"
    assert found == expected, {t: (found.get(t), expected.get(t)) for t in found | expected}
    files = sorted((run / "samples").glob("*.png"))
    assert files, "no grids of samples"
    images = events.Images("samples")
    assert [image.step for image in images] == [int(f.stem.removeprefix("step-")) for f in files]
    for image, file in zip(images, files, strict=True):
        png = file.read_bytes()
        assert image.encoded_image_string == png, file
        assert (image.width, image.height) == struct.unpack(">II", png[16:24]), file
    assert events.Tags()["images"] == ["samples"]
    count = sum(len(values) for values in found.values())
    print(f"ok TensorBoard: {count} values of {len(found)} scalars, {len(images)} images")


if __name__ == "__main__":
    main(*sys.argv[1:])
