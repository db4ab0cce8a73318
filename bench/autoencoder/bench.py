"""Encode and decode speed of SD-VAE's architecture and of a tiny autoencoder, beside PyTorch.

    cargo build --release --workspace --example autoencoder_speed
    python bench/autoencoder/bench.py target/release/examples/autoencoder_speed

Two programs run in turns on the same random weights, which diffusers made, so that whatever else
the machine does slows both: `autoencoder_speed`, and this file as a peer process that runs diffusers'
modules in channels_last memory format without gradients. Before every pair the peer also measures
a large f32 matrix product, the machine's rate. Convolutions are counted as their definition has
them, so that a rate above the matrix product's is Winograd's doing. Memory is the peak of one run
beyond what the process held before it loaded the weights. Processor time is that of all threads:
beside other work its ratio says more than that of the elapsed times.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

KINDS = ("tiny", "kl")
MATRIX = 2048
# As the binary sets them for itself.
ENVIRONMENT = os.environ | {"MIMALLOC_PURGE_DELAY": "-1", "CANDLE_BARRIER_POOL_SPIN_LIMIT": "1"}


def memory_mib(figure):
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(figure)) // 1024


def network(kind):
    """SD-VAE's configuration and TAESD's, with weights that are the same every time."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny

    torch.manual_seed(0)
    if kind == "tiny":
        return AutoencoderTiny()
    levels = 4
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


def gigaflops(net, run):
    """Multiply-adds of all convolutions and linear layers, counted twice, in 1e9."""
    import torch

    total = 0

    def count(module, _, output):
        nonlocal total
        weight = module.weight
        inputs = weight[0].numel() if isinstance(module, torch.nn.Conv2d) else weight.shape[1]
        total += 2 * output.numel() * inputs

    layers = [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return total / 1e9


def serve(kind, weights, size, batch, threads):
    """The peer: answers `encode`, `decode` as the example does, `flops NAME` and `matrix`."""
    import diffusers
    import torch

    torch.set_num_threads(threads)
    print(memory_mib("VmRSS:"), f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}", flush=True)
    net = network(kind).__class__.from_pretrained(pathlib.Path(weights).parent)
    net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last) * 2 - 1
    latents = torch.zeros(batch, 4, size // 8, size // 8).contiguous(memory_format=torch.channels_last)
    runs = {
        "encode": lambda: net.encode(images),
        "decode": lambda: net.decode(latents).sample,
    }
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    with torch.inference_mode():
        for line in sys.stdin:
            name = line.split()
            if name[0] == "flops":
                print(gigaflops(net, runs[name[1]]), flush=True)
                continue
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            started, processor = time.perf_counter(), time.process_time()
            if name[0] == "matrix":
                for _ in range(4):
                    a @ b
            else:
                runs[name[0]]()
            taken, processor = time.perf_counter() - started, time.process_time() - processor
            print(taken, memory_mib("VmHWM:"), processor, flush=True)


class Peer:
    def __init__(self, command):
        pipe = subprocess.PIPE
        command = [str(word) for word in command]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT)
        start, *self.about = self.process.stdout.readline().split(maxsplit=1)
        self.start = int(start)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return [float(part) for part in self.process.stdout.readline().split()]

    def run(self, name):
        seconds, peak, processor = self.ask(name)
        return seconds, peak - self.start, processor


def bench(kind, args):
    with tempfile.TemporaryDirectory() as folder:
        network(kind).save_pretrained(folder)
        weights = f"{folder}/diffusion_pytorch_model.safetensors"
        shape = (args.size, args.batch)
        theirs = Peer([sys.executable, __file__, "--serve", kind, weights, *shape, args.threads])
        ours = Peer([args.program, weights, *shape])
        peers = {"PyTorch": theirs, "lapflow": ours}
        print(f"{theirs.about[0].strip()}, {args.threads} threads", flush=True)
        for name in args.runs:
            flops = theirs.ask(f"flops {name}")[0]
            rate = max(4 * 2 * MATRIX**3 / theirs.run("matrix")[0] / 1e9 for _ in range(args.repeats))
            ours.run(name)
            taken = {peer: [] for peer in peers}
            for _ in range(args.repeats):
                for peer in peers:
                    taken[peer].append(peers[peer].run(name))
            for peer, runs in taken.items():
                best, memory = min(runs)[0], max(memory for _, memory, _ in runs)
                processor = min(processor for _, _, processor in runs)
                print(
                    f"{kind} {name} {args.size}px batch {args.batch}: {peer:8} best {best:.3f} s, "
                    f"{args.batch / best:.2f} images/s, {flops / best:.0f} GFLOP/s beside "
                    f"{rate:.0f} of a matrix product, peak {memory:.0f} MiB, "
                    f"processor time {processor:.2f} s",
                    flush=True,
                )
            pairs = [a[0] / b[0] for a, b in zip(taken["PyTorch"], taken["lapflow"])]
            best = min(taken["PyTorch"])[0] / min(taken["lapflow"])[0]
            processor = [min(run[2] for run in taken[peer]) for peer in ("PyTorch", "lapflow")]
            print(
                f"  ratio PyTorch/lapflow: best {best:.2f}, median of pairs {statistics.median(pairs):.2f}, "
                f"processor time {processor[0] / processor[1]:.2f}",
                flush=True,
            )
        for peer in peers.values():
            peer.process.stdin.close()
            peer.process.wait()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        kind, weights, *numbers = sys.argv[2:]
        serve(kind, weights, *map(int, numbers))
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("program")
        parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
        parser.add_argument("--runs", nargs="+", default=["encode", "decode"])
        parser.add_argument("--size", type=int, default=256)
        parser.add_argument("--batch", type=int, default=2)
        parser.add_argument("--repeats", type=int, default=3)
        parser.add_argument("--threads", type=int, default=2)
        args = parser.parse_args()
        for kind in args.kinds:
            bench(kind, args)
