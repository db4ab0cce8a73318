"""Prints the reproduction's table from results/ROW-SEED.json, rows with several seeds as mean and spread, and what
timing.py measured of each row on a quiet machine."""

import json
import pathlib
import statistics
from collections import defaultdict

RESULTS = pathlib.Path(__file__).parent / "results"
COLUMNS = {
    "FD, all photos": lambda r: r["features"]["all"],
    "FD, held back": lambda r: r["features"]["held"],
    "fd-latent, held back": lambda r: r["latent"]["held"]["fd_latent"],
    "loss": lambda r: statistics.mean(line["loss"] for line in r["train"]),
    "GMACs an image, 20 Heun steps": lambda r: r["sampled"]["macs_per_image"] / 1e9,
    "NFE at 1e-4": lambda r: r["timed"]["nfe"],
    "GMACs at 1e-4": lambda r: r["timed"]["macs_per_image"] / 1e9,
}


TIMES = {
    "training images/s": "training_images_per_second",
    "s an image at 1e-4": "seconds_an_image",
}


def cell(values):
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean:.4g}{spread}"


def main():
    rows = defaultdict(list)
    for path in sorted(RESULTS.glob("*-[0-9].json")):
        result = json.loads(path.read_text())
        rows[result["row"]].append(result)
    times = json.loads((RESULTS / "timing.json").read_text())
    print("| row | seeds |", " | ".join([*COLUMNS, *TIMES]), "|")
    print("|---" * (len(COLUMNS) + len(TIMES) + 2) + "|")
    ordered = sorted(rows.items(), key=lambda item: statistics.mean(r["features"]["held"] for r in item[1]))
    for name, results in ordered:
        cells = [cell([read(result) for result in results]) for read in COLUMNS.values()]
        cells += [cell([times[name][key]]) if name in times else "" for key in TIMES.values()]
        print("|", name, "|", len(results), "|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
