"""A tiny DiT with random weights in the published layout, and what it answers.

    uv run --with torch==2.15.0 --with safetensors --with numpy python dit_published.py

Written from the equations of the paper (Peebles and Xie 2023) alone: adaLN-Zero blocks, patches
through a convolution, learned sigma. Writes dit_published.pt (model, ema, optimizer and arguments
in one file, as a trainer leaves them) and dit_published.safetensors (input, times, labels, and the
answers of both sets of weights, computed in float64).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

WIDTH, DEPTH, HEADS, PATCH, CHANNELS, SIDE, CLASSES = 16, 2, 2, 2, 4, 8, 5


def sincos(positions, width):
    angles = positions[:, None] / 10000 ** (np.arange(width // 2) / (width // 2))[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, WIDTH))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


def norm(x):
    return nn.functional.layer_norm(x, (WIDTH,), eps=1e-6)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = Attention(), Mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x, c):
        a, b, g, d, e, h = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        x = x + g * self.attn(norm(x) * (1 + b) + a)
        return x + h * self.mlp(norm(x) * (1 + e) + d)


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(CLASSES + 1, WIDTH)
        grid = SIDE // PATCH
        row, col = np.divmod(np.arange(grid * grid), grid)
        table = np.concatenate([sincos(col, WIDTH // 2), sincos(row, WIDTH // 2)], 1)
        self.pos_embed = nn.Parameter(torch.tensor(table)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(WIDTH, PATCH * PATCH * 2 * CHANNELS)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))

    def forward(self, x, step, y):
        tokens = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = step[:, None] * 10000 ** (-torch.arange(128, dtype=x.dtype) / 128)
        time = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], 1))
        c = time + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None].chunk(2, -1)
        out = self.final_layer.linear(norm(tokens) * (1 + scale) + shift)
        grid = SIDE // PATCH
        out = out.reshape(len(x), grid, grid, PATCH, PATCH, 2 * CHANNELS)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 2 * CHANNELS, SIDE, SIDE)


torch.set_num_threads(1)
torch.manual_seed(4)
torch.set_default_dtype(torch.float64)
model, ema = DiT(), DiT()
x, step, y = torch.randn(3, CHANNELS, SIDE, SIDE), torch.tensor([0.0, 371.0, 999.0]), torch.tensor([0, 4, 5])
single = lambda net: {name: tensor.float().clone() for name, tensor in net.state_dict().items()}
optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
model(x, step, y).square().mean().backward()
weights = {"model": single(model), "ema": single(ema)}
optimizer.step()
for net, group in [(model, "model"), (ema, "ema")]:
    net.load_state_dict({name: tensor.double() for name, tensor in weights[group].items()})
here = Path(__file__).parent
args = argparse.Namespace(model="DiT-tiny", image_size=SIDE * 8, num_classes=CLASSES)
torch.save({**weights, "opt": {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}, "args": args}, here / "dit_published.pt")
with torch.no_grad():
    answers = {"model": model(x, step, y), "ema": ema(x, step, y)}
golden = {"x": x, "step": step, "y": y.double(), **answers}
save_file({name: tensor.float().contiguous() for name, tensor in golden.items()}, here / "dit_published.safetensors")
