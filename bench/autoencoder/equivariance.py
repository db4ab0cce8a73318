"""What EQ-VAE's regularisation does to a small autoencoder of real faces, by `lapflow autoencoder train`.

    cargo build --release
    python bench/autoencoder/equivariance.py target/release/lapflow $LAPFLOW_TEST_DATA --out runs/equivariance

Trains equivariance.toml three times: without the regularisation, with it in every second step, and
without it and then fine-tuned with it for a quarter as long. Prints for held-out images, Down
being the 2x2 mean,

    reconstruction   PSNR of decode(z) against x
    halved           PSNR of decode(Down(z)) against Down(x)
    latent error     |encode(Down(x)) - Down(z)| / |Down(z) - its mean|

and, because the regularisation costs some reconstruction, the step of the plain run whose
reconstruction is nearest to each regularised one's. A run that was stopped goes on where it was;
`--report` prints what there is. Standard library only.
"""

import argparse
import json
import pathlib
import subprocess

CONFIG = pathlib.Path(__file__).with_name("equivariance.toml")
EQUIVARIANCE = 0.5
PLAIN, REGULARISED, FINETUNED = "plain", "equivariant", "fine-tuned"


def recipe(variant, out):
    """The config of a variant: the committed one with one or three values changed."""
    text = CONFIG.read_text()
    if variant != PLAIN:
        text = text.replace("equivariance = 0.0", f"equivariance = {EQUIVARIANCE}")
    if variant == FINETUNED:
        weights = out / PLAIN / "autoencoder.safetensors"
        steps = int(next(line.split("=")[1] for line in text.splitlines() if line.startswith("steps =")))
        text = text.replace(f"steps = {steps}", f"steps = {steps // 4}")
        text = text.replace("[train]", f'[train]\ninit = "{weights}"')
        text = text.replace("lr = 1.5e-3", "lr = 5e-4")
    path = out / f"{variant}.toml"
    path.write_text(text)
    return path


def train(variant, program, data, out):
    folder = out / variant
    command = [program, "autoencoder", "train", recipe(variant, out), "--out", folder]
    if (folder / "state.safetensors").exists():
        command.append("--resume")
    subprocess.run([str(part) for part in command], cwd=data, check=True, stdout=subprocess.DEVNULL)


def scores(out, variant):
    """(step, score) of every checkpoint."""
    path = out / variant / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["held_out"]) for line in lines if "held_out" in line]


def report(out):
    runs = {variant: scores(out, variant) for variant in (PLAIN, REGULARISED, FINETUNED)}
    print("| run | step | reconstruction, dB | halved, dB | latent error |\n|---|---|---|---|---|")

    def row(name, step, score):
        values = f"{score['psnr']:.2f} | {score['psnr_half']:.2f} | {score['latent_error_half']:.3f}"
        print(f"| {name} | {step} | {values} |")

    for variant, points in runs.items():
        if not points:
            continue
        step, score = points[-1]
        row(variant, step, score)
        if variant != PLAIN and runs[PLAIN]:
            nearest = min(runs[PLAIN], key=lambda point: abs(point[1]["psnr"] - score["psnr"]))
            row(f"{PLAIN} at {variant}'s reconstruction", *nearest)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path, help="the folder that holds lfw-112")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--variants", nargs="+", default=[PLAIN, REGULARISED, FINETUNED])
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        for variant in args.variants:
            train(variant, args.program.resolve(), args.data, out)
    report(out)


if __name__ == "__main__":
    main()
