"""The training step of lapflow in PyTorch, written from the equations: a peer to time against.

Two levels of 32x32x4, 1000 classes, condition tokens, embed, qkv and head untied, causal between
levels; AdamW (fused) and an exponential moving average of the weights after each step.

Usage: step.py S|B BATCH STEPS eager|compile
"""
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

LEVELS, CHANNELS, SIDE, PATCH, CLASSES = 2, 4, 32, 2, 1000
STARTS = [0.5, 0.0]
SHAPES = {"S": (384, 12, 6), "B": (768, 12, 12)}


def positions(side, width):
    quarter = width // 4
    rate = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = []
    for place in (col, row):
        angle = place.reshape(-1, 1).double() * rate
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, 1).float()


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(LEVELS))
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.adaln = nn.Linear(width, 6 * width)

    def attention(self, x, lengths):
        """`x` (b, n, width), coarsest level first; each level sees itself and coarser ones."""
        batch, _, width = x.shape
        parts = x.split(lengths, 1)
        finest = LEVELS - len(lengths)
        qkv = [self.qkv[LEVELS - 1 - i](part) for i, part in enumerate(parts)]
        assert finest >= 0
        split = [
            p.view(batch, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4) for p in qkv
        ]
        outs = []
        for i, own in enumerate(split):
            keys = own[1] if i == 0 else torch.cat([s[1] for s in split[: i + 1]], 2)
            values = own[2] if i == 0 else torch.cat([s[2] for s in split[: i + 1]], 2)
            out = F.scaled_dot_product_attention(own[0], keys, values)
            outs.append(out.transpose(1, 2).reshape(batch, -1, width))
        return torch.cat(outs, 1)

    def forward(self, x, silu_c, lengths):
        m = self.adaln(silu_c).unsqueeze(1).chunk(6, -1)
        width = x.shape[-1:]
        y = F.layer_norm(x, width, eps=1e-6) * (1 + m[1]) + m[0]
        x = x + m[2] * self.proj(self.attention(y, lengths))
        y = F.layer_norm(x, width, eps=1e-6) * (1 + m[4]) + m[3]
        return x + m[5] * self.fc2(F.gelu(self.fc1(y), approximate="tanh"))


class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.adaln = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, PATCH * PATCH * CHANNELS)

    def forward(self, x, silu_c):
        shift, scale = self.adaln(silu_c).unsqueeze(1).chunk(2, -1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class Network(nn.Module):
    def __init__(self, width, depth, heads):
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(CHANNELS * PATCH**2, width) for _ in range(LEVELS))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(CLASSES + 1, width)
        self.time_token, self.label_token = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.heads = nn.ModuleList(Head(width) for _ in range(LEVELS))
        for k in range(LEVELS):
            self.register_buffer(f"positions{k}", positions((SIDE >> k) // PATCH, width))
        self.register_buffer("rates", 10000.0 ** (-torch.arange(128) / 128.0) * 1000.0)

    def forward(self, levels, t, labels):
        """`levels` finest first; velocities in the same order."""
        finest = LEVELS - len(levels)
        angles = t[:, None] * self.rates
        time = self.time(torch.cat([angles.cos(), angles.sin()], 1))
        label = self.labels(labels)
        silu_c = F.silu(time + label)
        tokens = [torch.stack([self.time_token(time), self.label_token(label)], 1)]
        for k in reversed(range(finest, LEVELS)):
            x = levels[k - finest]
            b, c, h, w = x.shape
            x = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
            x = self.embed[k](x.reshape(b, -1, c * PATCH**2))
            tokens.append(x + getattr(self, f"positions{k}"))
        counts = [tokens[1].shape[1] + 2] + [x.shape[1] for x in tokens[2:]]
        x = torch.cat(tokens, 1)
        for block in self.blocks:
            x = block(x, silu_c, counts)
        parts = list(x.split(counts, 1))
        parts[0] = parts[0][:, 2:]
        out = []
        for k in range(finest, LEVELS):
            y = self.heads[k](parts[LEVELS - 1 - k], silu_c)
            side = (SIDE >> k) // PATCH
            y = y.reshape(y.shape[0], side, side, PATCH, PATCH, CHANNELS).permute(0, 5, 1, 3, 2, 4)
            out.append(y.reshape(y.shape[0], CHANNELS, SIDE >> k, SIDE >> k))
        return out


def pyramid(x):
    levels = []
    for _ in range(LEVELS - 1):
        coarse = F.avg_pool2d(x, 2)
        levels.append(x - F.interpolate(coarse, scale_factor=2, mode="nearest"))
        x = coarse
    return levels + [x]


def loss_of(net, stage, data, labels):
    batch = labels.shape[0]
    noise = pyramid(torch.randn(batch, CHANNELS, SIDE, SIDE))
    t = STARTS[stage] + (1 - STARTS[stage]) * torch.rand(batch)
    labels = torch.where(torch.rand(batch) < 0.1, CLASSES, labels)
    at = t[:, None, None, None]
    states, targets = [], []
    for k in range(stage, LEVELS):
        span = 1 - STARTS[k]
        states.append((at - STARTS[k]) / span * data[k] + (1 - at) * noise[k])
        targets.append(data[k] / span - noise[k])
    velocities = net(states, t, labels)
    return sum(F.mse_loss(v, u) for v, u in zip(velocities, targets))


def main(size, batch, steps, mode):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    net = Network(*SHAPES[size])
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    parameters = list(net.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    data = pyramid(torch.randn(int(batch), CHANNELS, SIDE, SIDE))
    labels = torch.arange(int(batch))
    run = torch.compile(net) if mode == "compile" else net
    seconds = [[] for _ in range(LEVELS)]
    for i in range(LEVELS * (int(steps) + 1)):
        stage = i % LEVELS
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(run, stage, data, labels)
        loss.backward()
        # The norm is logged in both: it also says whether the step is finite.
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        assert math.isfinite(loss.item()) and math.isfinite(norm.item())
        optimizer.step()
        torch._foreach_lerp_(average, parameters, 1e-4)
        seconds[stage].append(time.perf_counter() - start)
    count = sum(p.numel() for p in parameters)
    print(json.dumps({"what": mode, "parameters": count, "seconds": [s[1:] for s in seconds]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
