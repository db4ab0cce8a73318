"""Weights that Python and Rust compute alike, so that goldens need not carry them."""

import numpy as np
import torch

MASK = (1 << 64) - 1


def uniform(name, count):
    """`count` values in [-1, 1): splitmix64 over an FNV-1a hash of `name`, top 24 bits."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def weight(name, shape):
    """Matrices and kernels keep the variance; vectors are 1 + 0.2 u for gains, 0.2 u for biases."""
    u = uniform(name, int(np.prod(shape))).reshape(shape)
    if len(shape) == 1:
        u = u * np.float32(0.2)
        if name.endswith("weight"):
            u = u + np.float32(1)
    else:
        u = u * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(np.ascontiguousarray(u, dtype=np.float32))


def fill(module):
    """Gives every parameter of `module` the weight of its name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weight(name, tuple(parameter.shape)))
    return module.eval()
