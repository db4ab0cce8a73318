"""One row of the reproduction from encode to its scores; started again, it goes on where it stopped.

    python run.py ROW.. --photos FOLDER --autoencoder ENCODER DECODER --work DIR [--seed 0]

ROW names a file of rows/, which may be `like` another and then says only what is not. Every second
photo (by name) trains, the others are held back. What lapflow writes stays in DIR; the row's figures
go to results/ROW-SEED.json, which table.py reads. Needs `cargo build --release` and requirements.txt.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tomllib

import features

HERE = pathlib.Path(__file__).parent
LAPFLOW = os.environ.get("LAPFLOW", str(HERE.parents[1] / "target/release/lapflow"))
SAMPLES = 4000
TIMED = 64  # images drawn to compare time at equal tolerance


def lapflow(*words):
    """Runs lapflow and returns what it prints as JSON, if anything."""
    done = subprocess.run([LAPFLOW, "--json", *map(str, words)], check=True, stdout=subprocess.PIPE)
    lines = done.stdout.decode().strip()
    return json.loads(lines) if lines else None


def once(path, make):
    """What the JSON file at `path` holds, made by `make` where it is not there yet."""
    if not path.exists():
        result = make()
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(result, indent=1) + "\n")
        beside.rename(path)
    return json.loads(path.read_text())


def settings(row):
    """`--set` words for all values of a row's tables."""
    for section, values in row.items():
        for key, value in values.items():
            yield from ("--set", f"{section}.{key}={json.dumps(value)}")


def weight_files(autoencoder):
    """The table `[autoencoder]` for weight files."""
    return {"weights": [str(path.resolve()) for path in autoencoder]}


def tables(name):
    """What row `name` does differently from base.toml: its file over that of the row it is `like`, if any."""
    own = tomllib.loads((HERE / "rows" / f"{name}.toml").read_text())
    like = tables(own.pop("like")) if "like" in own else {}
    return {section: like.get(section, {}) | own.get(section, {}) for section in like | own}


def size_of(name):
    """Pixels a side in row `name`; rows of one size share their photos and latents, in a folder of that name."""
    base = tomllib.loads((HERE / "base.toml").read_text())
    return (base["data"] | tables(name).get("data", {}))["size"]


def photos(folder, work, size):
    """Folders `source-PART` of links to the photos, and `photos-PART` of them cropped."""
    work.mkdir(parents=True, exist_ok=True)
    names = sorted(folder.glob("*.jpg"))
    parts = {"train": names[::2], "held": names[1::2], "all": names}
    for part, paths in parts.items():
        source = work / f"source-{part}"
        source.mkdir(exist_ok=True)
        for path in paths:
            if not (link := source / path.name).exists():
                link.symlink_to(path.resolve())
        out = work / f"photos-{part}"
        lapflow("ingest", source, "--size", size, "--crop", "resize", "--out", out)


def config(name, work, autoencoder, folder, **train):
    """lapflow's words for row `name` trained in `folder`, with `train` in place of what the row says."""
    own = tables(name)
    machine = {
        "data": own.pop("data", {}) | {"source": str(work / "source-train"), "dataset": str(work / "dataset")},
        "autoencoder": weight_files(autoencoder),
        "train": own.pop("train", {}) | {"folder": str(folder)} | train,
    }
    return [HERE / "base.toml", *settings(own), *settings(machine)]


def sample_at_tolerance(trained, out):
    tolerance = ["--solver", "dopri5", "--set", "rtol=1e-4", "--set", "atol=1e-4"]
    out.unlink(missing_ok=True)
    return lapflow("sample", trained, "--count", TIMED, "--out", out, *tolerance)


def row(name, seed, args):
    size = size_of(name)
    work = args.work / str(size)
    photos(args.photos, work, size)
    run = work / f"{name}-{seed}"
    run.mkdir(exist_ok=True)
    words = config(name, work, args.autoencoder, run / "run", seed=seed)
    lapflow("encode", *words)
    plan = once(run / "plan.json", lambda: lapflow("train", *words, "--dry-run"))
    lapflow("train", *words, "--resume")
    drawn = run / "samples.npz"
    sampled = once(
        run / "sampled.json",
        lambda: lapflow("sample", run / "run", "--count", SAMPLES, "--out", drawn),
    )

    timed = once(run / "timed.json", lambda: sample_at_tolerance(run / "run", run / "timed.npz"))
    scores = once(run / "features.json", lambda: features.scores(drawn, work))
    weights = ["--autoencoder", *args.autoencoder]
    latent = {
        part: once(
            run / f"latent-{part}.json",
            lambda: lapflow(
                "eval", drawn, work / f"photos-{part}", "--allow-few", "--json", *weights,
                "--metrics", "fd-latent",
            ),
        )
        for part in ("all", "held")
    }
    metrics = [json.loads(line) for line in (run / "run/metrics.jsonl").read_text().splitlines()]
    result = {
        "row": name, "seed": seed, "plan": plan, "train": metrics[-10:], "sampled": sampled,
        "timed": timed, "features": scores, "latent": latent,
    }
    return json.loads(json.dumps(result).replace(str(work), "WORK"))


def arguments(description):
    """A parser of what this and the scripts beside it are given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--autoencoder", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    return parser


def main():
    parser = arguments(__doc__)
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    for name in args.rows:
        once(results / f"{name}-{args.seed}.json", lambda: row(name, args.seed, args))
        print(f"{name}, seed {args.seed}: done", flush=True)


if __name__ == "__main__":
    main()
