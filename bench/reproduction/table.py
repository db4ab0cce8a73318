"""Prints the reproduction's tables from ROW-SEED.json, rows with several seeds as mean and spread: scores, with
what timing.py measured of each row on a quiet machine, and training losses by level.

    python table.py [FOLDER]        # results; results/lr-1e-3 has the same rows at a lower learning rate
"""

import json
import pathlib
import statistics
import sys
from collections import defaultdict

RESULTS = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "results"
COLUMNS = {
    "FD, all photos": lambda r: r["features"]["all"],
    "FD, held back": lambda r: r["features"]["held"],
    "fd-latent, held back": lambda r: r["latent"]["held"]["fd_latent"],
    "GMACs an image, 20 Heun steps": lambda r: r["sampled"]["macs_per_image"] / 1e9,
    "NFE at 1e-4": lambda r: r["timed"]["nfe"],
    "GMACs at 1e-4": lambda r: r["timed"]["macs_per_image"] / 1e9,
}


TIMES = {
    "training images/s": "training_images_per_second",
    "s an image at 1e-4": "seconds_an_image",
}


def losses(results):
    """Mean loss of each level in each stage, over the last 500 steps of all seeds; stages and levels count from the finest."""
    lines = [line["levels"] for result in results for line in result["train"]]
    stages = defaultdict(list)
    for key in sorted(lines[0]):
        stage, level = key.split("/")
        loss = statistics.mean(line[key] for line in lines if key in line)
        stages[stage].append(f"{loss:.3f} (level {level})")
    return "; ".join(f"stage {stage}: {', '.join(levels)}" for stage, levels in stages.items())


def cell(values):
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean:.4g}{spread}"


def main():
    rows = defaultdict(list)
    for path in sorted(RESULTS.glob("*-[0-9].json")):
        result = json.loads(path.read_text())
        rows[result["row"]].append(result)
    timing = RESULTS / "timing.json"
    times = json.loads(timing.read_text()) if timing.exists() else {}
    print("| row | seeds |", " | ".join([*COLUMNS, *TIMES]), "|")
    print("|---" * (len(COLUMNS) + len(TIMES) + 2) + "|")
    ordered = sorted(rows.items(), key=lambda item: statistics.mean(r["features"]["held"] for r in item[1]))
    for name, results in ordered:
        cells = [cell([read(result) for result in results]) for read in COLUMNS.values()]
        cells += [cell([times[name][key]]) if name in times else "" for key in TIMES.values()]
        print("|", name, "|", len(results), "|", " | ".join(cells), "|")
    print("\n| row | training loss |\n|---|---|")
    for name, results in ordered:
        print("|", name, "|", losses(results), "|")


if __name__ == "__main__":
    main()
