"""How fast the rows train and sample, one after the other on a machine that does nothing else.

    python timing.py ROW.. --autoencoder ENCODER DECODER --work DIR

DIR is where run.py has run the rows (any seed). Their figures go to results/timing.json, which table.py reads.
"""

import json
import shutil
import statistics

import run

RESULTS = run.HERE / "results/timing.json"
STEPS, EVERY = 40, 10  # the first of the lines warms up


def timed(name, args):
    work = args.work / str(run.size_of(name))
    folder = work / "timing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run.lapflow("train", *run.config(name, work, args.autoencoder, folder / "run", steps=STEPS, log_every=EVERY))
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    trained = next(path for path in sorted(work.glob(f"{name}-[0-9]")) if (path / "run").exists())
    sampled = run.sample_at_tolerance(trained / "run", folder / "samples.npz")
    return {
        "training_images_per_second": statistics.mean(line["images_per_second"] for line in lines[1:]),
        "seconds_an_image": 1 / sampled["images_per_second"],
    }


def main():
    args = run.arguments(__doc__).parse_args()
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.rows:
        figures[name] = timed(name, args)
        RESULTS.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
        print(name, figures[name], flush=True)


if __name__ == "__main__":
    main()
