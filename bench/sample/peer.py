"""LapFlow's network and sampler in PyTorch and torchdiffeq, as a user of both would write them.

Reads a lapflow checkpoint (safetensors, its card in the metadata); supports what the benchmark
needs: causal mask, tied or untied parts by name, labels and condition tokens. Attention runs a
level's queries against the keys of its own and coarser levels, so nothing is masked away.
"""

import json
import math

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torchdiffeq import odeint

STARTS = {1: [0.0], 2: [0.5, 0.0], 3: [0.67, 0.33, 0.0], 4: [0.75, 0.5, 0.25, 0.0]}
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def read_card(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["lapflow"])


def shape_of(model):
    width, depth, heads = SIZES[model["preset"]]
    return model.get("width") or width, model.get("depth") or depth, model.get("heads") or heads


class Net:
    def __init__(self, path, dtype=torch.float32):
        self.card = read_card(path)
        model, geometry = self.card["model"], self.card["geometry"]
        assert model["mask"] == "causal" and self.card["flow"]["sigma"] == "linear"
        self.width, self.depth, self.heads = shape_of(model)
        self.patch, self.scale, self.dtype = model["patch"], model["time_scale"], dtype
        self.channels, self.levels, self.classes = geometry["channels"], geometry["levels"], geometry["classes"]
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            group = "ema." if any(name.startswith("ema.") for name in names) else "model."
            self.p = {n[len(group):]: file.get_tensor(n).to(dtype) for n in names if n.startswith(group)}
        self.positions = [
            self.grid(geometry["height"] >> k, geometry["width"] >> k) for k in range(self.levels)
        ]
        half = torch.arange(128, dtype=torch.float64) / 128
        self.frequencies = (self.scale * torch.exp(-math.log(10000) * half)).to(dtype)
        self.evaluations = 0

    def grid(self, height, width):
        rows, cols = torch.meshgrid(
            torch.arange(height // self.patch, dtype=torch.float64),
            torch.arange(width // self.patch, dtype=torch.float64), indexing="ij")
        quarter = self.width // 4
        omega = 1 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
        waves = [f(axis.flatten()[:, None] * omega) for axis in (cols, rows) for f in (torch.sin, torch.cos)]
        return torch.cat(waves, 1).to(self.dtype)

    def name(self, base, k):
        return base if base + ".weight" in self.p else None

    def linear(self, x, name):
        return F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def at(self, base, tail, k):
        """The parameter's name, the level's own where there is one."""
        own = f"{base}.level{k}{tail}"
        return own if own + ".weight" in self.p else base + tail

    def per_level(self, x, base, tail, order, tokens):
        """A linear layer over all tokens: one product where it is tied."""
        if self.at(base, tail, order[0]) == self.at(base, tail, order[-1]) or len(order) == 1:
            return self.linear(x, self.at(base, tail, order[0]))
        parts = [self.linear(part, self.at(base, tail, k)) for k, part in zip(order, x.split(tokens, 1))]
        return torch.cat(parts, 1)

    def modulate(self, x, shift, scale):
        return F.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    def attention(self, qkv, tokens):
        b, n, _ = qkv.shape
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out, start = [], 0
        for count in tokens:
            end = start + count
            out.append(F.scaled_dot_product_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end]))
            start = end
        return torch.cat(out, 2).transpose(1, 2).reshape(b, n, self.width)

    def forward(self, levels, t, labels):
        """`levels` finest first; `t` and `labels` (b)."""
        self.evaluations += 1
        order = list(range(self.levels - len(levels), self.levels))[::-1]
        angles = t[:, None] * self.frequencies
        time = torch.cat([angles.cos(), angles.sin()], 1)
        time = self.linear(F.silu(self.linear(time, "t_embedder.mlp.0")), "t_embedder.mlp.2")
        cond, c = [], time
        if self.classes:
            label = self.p["y_embedder.embedding_table.weight"][labels]
            c = c + label
        if "cond_tokens.time.weight" in self.p:
            cond = [self.linear(time, "cond_tokens.time")]
            cond += [self.linear(label, "cond_tokens.label")] if self.classes else []
        parts = [torch.stack(cond, 1)] if cond else []
        for k in order:
            x = F.pixel_unshuffle(levels[k - order[-1]], self.patch).flatten(2).transpose(1, 2)
            parts.append(self.linear(x, self.at("x_embedder", ".proj", k)) + self.positions[k])
        tokens = [len(self.positions[k]) for k in order]
        tokens[0] += len(cond)
        x, silu = torch.cat(parts, 1), F.silu(c)
        for i in range(self.depth):
            block = f"blocks.{i}."
            m = self.linear(silu, block + "adaLN_modulation.1").chunk(6, 1)
            y = self.modulate(x, m[0], m[1])
            y = self.attention(self.per_level(y, block + "attn.qkv", "", order, tokens), tokens)
            x = x + m[2][:, None] * self.linear(y, block + "attn.proj")
            y = self.modulate(x, m[3], m[4])
            y = F.gelu(self.linear(y, block + "mlp.fc1"), approximate="tanh")
            x = x + m[5][:, None] * self.linear(y, block + "mlp.fc2")
        out = []
        for k, part in zip(order, x.split(tokens, 1)):
            part = part[:, len(cond):] if k == order[0] else part
            shift, scale = self.linear(silu, self.at("final_layer", ".adaLN_modulation.1", k)).chunk(2, 1)
            y = self.linear(self.modulate(part, shift, scale), self.at("final_layer", ".linear", k))
            side = levels[k - order[-1]].shape[2] // self.patch
            y = y.reshape(-1, side, y.shape[1] // side, self.patch, self.patch, self.channels)
            out.append(torch.einsum("nhwpqc->nchpwq", y).reshape(levels[k - order[-1]].shape))
        return tuple(out[::-1])


@torch.inference_mode()
def sample(net, noise, labels, tolerance):
    """The levels at t = 1, finest first, and the evaluations of the network."""
    starts = STARTS[net.levels]
    net.evaluations, levels = 0, ()

    def velocity(t, state):
        return net.forward(state, t.to(net.dtype).expand(len(labels)), labels)

    for k in range(net.levels - 1, -1, -1):
        levels = (noise[k] * (1 - starts[k]),) + levels
        end = 1.0 if k == 0 else starts[k - 1]
        span = torch.tensor([starts[k], end], dtype=torch.float64)
        states = odeint(velocity, levels, span, rtol=tolerance, atol=tolerance, method="dopri5")
        levels = tuple(state[-1] for state in states)
    return levels, net.evaluations
