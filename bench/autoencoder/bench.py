"""Encode and decode speed of SD-VAE's architecture and of a tiny autoencoder, beside PyTorch.

    cargo build --release -p lapflow-model --example autoencoder_speed
    python bench/autoencoder/bench.py target/release/examples/autoencoder_speed

Both programs run in turns on the same random weights, so that whatever else the machine does
slows both. PyTorch runs diffusers' modules in channels_last memory format without gradients.
Made with torch 2.15, diffusers 0.42.1.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

LEVELS = 4


def peak_mib():
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1024


def gigaflops(net, run):
    """Multiply-adds of all convolutions and linear layers, counted twice, in 1e9."""
    total = 0

    def count(module, _, output):
        nonlocal total
        weight = module.weight
        if isinstance(module, torch.nn.Conv2d):
            total += 2 * output.numel() * weight[0].numel()
        else:
            total += 2 * output.numel() * weight.shape[1]

    layers = [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return total / 1e9


def matrix_rate():
    """GFLOP/s of a large f32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    started = time.perf_counter()
    for _ in range(4):
        a @ b
    return 4 * 2 * 2048**3 / (time.perf_counter() - started) / 1e9


def peers(kind):
    torch.manual_seed(0)
    if kind == "kl":
        net = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * LEVELS,
            up_block_types=("UpDecoderBlock2D",) * LEVELS,
        )
        return net, lambda x: net.encode(x).latent_dist.mean, lambda z: net.decode(z).sample
    net = AutoencoderTiny()
    return net, lambda x: net.encode(x).latents, lambda z: net.decode(z).sample


def bench(kind, program, size, batch, repeats):
    net, encode, decode = peers(kind)
    net = net.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        weights = f"{folder}/diffusion_pytorch_model.safetensors"
        command = [program, weights, str(size), str(batch)]
        ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        net = net.to(memory_format=torch.channels_last)
        images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last) * 2 - 1
        latents = torch.zeros(batch, 4, size // 8, size // 8).contiguous(memory_format=torch.channels_last)
        before = peak_mib()
        for name, run in (("encode", lambda: encode(images)), ("decode", lambda: decode(latents))):
            flops = gigaflops(net, run)
            seconds = {"PyTorch": [], "lapflow": []}
            for _ in range(repeats):
                started = time.perf_counter()
                run()
                seconds["PyTorch"].append(time.perf_counter() - started)
                ours.stdin.write(name + "\n")
                ours.stdin.flush()
                taken, memory = ours.stdout.readline().split()
                seconds["lapflow"].append(float(taken))
            ratios = [theirs / own for theirs, own in zip(seconds["PyTorch"], seconds["lapflow"])]
            for peer, taken in seconds.items():
                best = min(taken)
                print(
                    f"{kind} {name} {size}px batch {batch}: {peer:8} best {best:.3f} s, "
                    f"{batch / best:.2f} images/s, {flops / best:.0f} GFLOP/s",
                    flush=True,
                )
            print(
                f"  ratio PyTorch/lapflow: best {min(seconds['PyTorch']) / min(seconds['lapflow']):.2f}, "
                f"median of pairs {statistics.median(ratios):.2f}; peak memory: PyTorch "
                f"{peak_mib() - before} MiB above its start, lapflow {memory} MiB in all",
                flush=True,
            )
        ours.stdin.close()
        ours.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--kinds", nargs="+", default=["tiny", "kl"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"matrix product: {matrix_rate():.0f} GFLOP/s with {torch.get_num_threads()} threads", flush=True)
    with torch.inference_mode():
        for kind in args.kinds:
            bench(kind, args.program, args.size, args.batch, args.repeats)
