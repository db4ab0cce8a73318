"""Goldens of the multi-scale transformer from an independent PyTorch implementation in float64.

    uv run --with torch==2.15.0 --with safetensors --with numpy python transformer.py

Writes transformer_*.safetensors beside this file: the outputs and every parameter's gradient of
sum(v * weight) for each case. Parameters and inputs are not stored: both sides compute them from
their names by `values`. Attention goes through an explicit mask matrix, patches through conv2d.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

WIDTH, DEPTH, HEADS, PATCH, CHANNELS, SIZE, BATCH = 8, 2, 2, 2, 3, 8, 2


def values(name, shape, scale):
    """Pseudo-random values in [-scale, scale) from a 32-bit hash of name and index."""
    index = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
    mixed = (index * np.uint64(2654435761)) % np.uint64(2**32)
    mixed = mixed ^ (mixed >> np.uint64(15))
    mixed = (mixed * np.uint64(2246822519)) % np.uint64(2**32)
    unit = mixed.astype(np.float64) / 2**32
    return torch.tensor(((2 * unit - 1) * scale).astype(np.float32).astype(np.float64)).reshape(shape)


class Net:
    def __init__(self, levels, classes, mask, untied, cond_tokens):
        self.levels, self.classes, self.mask = levels, classes, mask
        self.untied, self.cond_tokens = untied, cond_tokens
        self.params = {}

    def get(self, name, shape):
        if name not in self.params:
            self.params[name] = values(name, shape, 0.3).requires_grad_()
        return self.params[name]

    def name(self, part, base, k):
        return f"{base}.level{k}" if part in self.untied and self.levels > 1 else base

    def linear(self, x, name, out):
        return F.linear(x, self.get(name + ".weight", (out, x.shape[-1])), self.get(name + ".bias", (out,)))

    def condition(self, t, labels):
        freqs = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        args = t[:, None] * 1000 * freqs[None]
        time = torch.cat([torch.cos(args), torch.sin(args)], -1)
        time = self.linear(F.silu(self.linear(time, "t_embedder.mlp.0", WIDTH)), "t_embedder.mlp.2", WIDTH)
        tokens = [self.linear(time, "cond_tokens.time", WIDTH)] if self.cond_tokens else []
        c = time
        if self.classes:
            label = self.get("y_embedder.embedding_table.weight", (self.classes + 1, WIDTH))[labels]
            if self.cond_tokens:
                tokens.append(self.linear(label, "cond_tokens.label", WIDTH))
            c = c + label
        return c, tokens

    def embed(self, x, k):
        base = self.name("embed", "x_embedder", k) + ".proj"
        w = self.get(base + ".weight", (WIDTH, CHANNELS * PATCH * PATCH))
        y = F.conv2d(x, w.reshape(WIDTH, CHANNELS, PATCH, PATCH), self.get(base + ".bias", (WIDTH,)), stride=PATCH)
        rows, cols = y.shape[2:]
        q = WIDTH // 4
        omega = 1 / 10000 ** (torch.arange(q, dtype=torch.float64) / q)
        def one(p):
            out = p.flatten()[:, None] * omega
            return torch.cat([out.sin(), out.cos()], 1)
        gy, gx = torch.meshgrid(torch.arange(rows).double(), torch.arange(cols).double(), indexing="ij")
        return y.flatten(2).transpose(1, 2) + torch.cat([one(gx), one(gy)], 1)

    def forward(self, xs, t, labels):
        """xs: {level: tensor} with every level >= its smallest key."""
        c, cond = self.condition(t, labels)
        order = sorted(xs, reverse=True)
        streams = {k: self.embed(xs[k], k) for k in order}
        if cond:
            streams[order[0]] = torch.cat([torch.stack(cond, 1), streams[order[0]]], 1)
        owner = torch.cat([torch.full((streams[k].shape[1],), k) for k in order])
        q, kk = owner[:, None], owner[None, :]
        mask = {"causal": kk >= q, "none": torch.ones_like(kk >= q), "self": kk == q}[self.mask]
        for i in range(DEPTH):
            b = f"blocks.{i}."
            mods, qkvs = {}, []
            for k in order:
                m = self.linear(F.silu(c), self.name("adaln", b + "adaLN_modulation", k) + ".1", 6 * WIDTH)
                mods[k] = m.chunk(6, 1)
                y = self.modulate(streams[k], mods[k][0], mods[k][1])
                qkvs.append(self.linear(y, self.name("qkv", b + "attn.qkv", k), 3 * WIDTH))
            qkv = torch.cat(qkvs, 1)
            qkv = qkv.reshape(BATCH, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask)
            y = y.transpose(1, 2).flatten(2)
            for k in order:
                n = streams[k].shape[1]
                part, y = y[:, :n], y[:, n:]
                part = self.linear(part, self.name("attn_out", b + "attn.proj", k), WIDTH)
                x = streams[k] + mods[k][2][:, None] * part
                h = self.modulate(x, mods[k][3], mods[k][4])
                base = self.name("mlp", b + "mlp", k)
                h = F.gelu(self.linear(h, base + ".fc1", 4 * WIDTH), approximate="tanh")
                streams[k] = x + mods[k][5][:, None] * self.linear(h, base + ".fc2", WIDTH)
        out = {}
        for k in order:
            x = streams[k][:, len(cond):] if k == order[0] else streams[k]
            base = self.name("head", "final_layer", k)
            shift, scale = self.linear(F.silu(c), base + ".adaLN_modulation.1", 2 * WIDTH).chunk(2, 1)
            y = self.linear(self.modulate(x, shift, scale), base + ".linear", PATCH * PATCH * CHANNELS)
            n = xs[k].shape[2] // PATCH
            y = y.reshape(BATCH, n, n, PATCH, PATCH, CHANNELS)
            out[k] = torch.einsum("nhwpqc->nchpwq", y).reshape(xs[k].shape)
        return out

    @staticmethod
    def modulate(x, shift, scale):
        return F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def cases():
    paper = ["embed", "qkv", "head"]
    everything = paper + ["attn_out", "mlp", "adaln"]
    for levels in (1, 2, 3):
        for mask in ("causal",) if levels == 1 else ("causal", "none", "self"):
            for conditional in (False, True):
                untied = everything if mask == "self" else [] if (mask, conditional) == ("none", False) else paper
                yield dict(levels=levels, mask=mask, finest=0, classes=5 * conditional,
                           cond_tokens=conditional, untied=untied)
    yield dict(levels=3, mask="causal", finest=1, classes=5, cond_tokens=True, untied=everything)


def main():
    here = Path(__file__).parent
    for case in cases():
        net = Net(case["levels"], case["classes"], case["mask"], case["untied"], case["cond_tokens"])
        xs = {k: values(f"x{k}", (BATCH, CHANNELS, SIZE >> k, SIZE >> k), 1.5)
              for k in range(case["finest"], case["levels"])}
        t = torch.tensor([0.625, 0.9375], dtype=torch.float64)
        out = net.forward(xs, t, torch.tensor([3, 5]))
        loss = sum((v * values(f"weight{k}", v.shape, 1.0)).sum() for k, v in out.items())
        loss.backward()
        tensors = {f"v{k}": v.detach() for k, v in out.items()}
        tensors |= {f"grad.{n}": p.grad for n, p in net.params.items() if p.grad is not None}
        tensors = {n: np.ascontiguousarray(x.numpy().astype(np.float32)) for n, x in tensors.items()}
        name = f"transformer_k{case['levels']}_{case['mask']}_f{case['finest']}_{'label' if case['classes'] else 'plain'}"
        save_file(tensors, here / f"{name}.safetensors", metadata={"case": json.dumps(case)})


main()
