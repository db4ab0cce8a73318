"""Writes solvers.json: solutions and evaluation counts of torchdiffeq on a set of ODEs.

Run with torch 2.15 and torchdiffeq 0.2.5:  python solvers.py
The right-hand sides have their counterparts, by name, in ../solvers.rs. Linear decay is not among
them: its first error estimate, all rounding in f32, falls on the cap of the step's growth, so that
torchdiffeq's own result hangs on the order of a sum.
"""

import json
import pathlib

import torch
from torchdiffeq import odeint


def decay(t, y):
    return (-2 * y[0] ** 3,)


def rotation(t, y):
    return (torch.stack([y[0][:, 1], -y[0][:, 0]], 1) * 6,)


def forced(t, y):
    return (torch.cos(9 * t) * y[0] + torch.sin(4 * y[0]),)


def van_der_pol(t, y):
    x, v = y[0][:, 0], y[0][:, 1]
    return (torch.stack([v, 30 * (1 - x * x) * v - x], 1),)


def lorenz(t, y):
    a, b, c = y[0].unbind(1)
    return (torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1),)


def to_data(t, y):
    """The velocity of the linear path to one point, steep at the end."""
    return ((0.5 - y[0]) / (1.02 - t),)


def coupled(t, y):
    """Two levels: a coarse one on its own, a fine one that follows it."""
    coarse = torch.sin(3 * y[1]) - y[1] * t
    fine = y[0] * torch.cos(7 * t) + 2 * y[1].mean(1, keepdim=True)
    return (fine, coarse)


SPANS = {"decay": (0, 1), "rotation": (0, 1), "forced": (0, 1), "van_der_pol": (0, 1.5),
         "lorenz": (0, 1), "to_data": (0.33, 1), "coupled": (0.5, 1)}
FUNCTIONS = {f.__name__: f for f in (decay, rotation, forced, van_der_pol, lorenz, to_data, coupled)}


def starts(name, dtype):
    columns = {"rotation": [2], "van_der_pol": [2], "lorenz": [3], "coupled": [6, 3]}.get(name, [5])
    generator = torch.Generator().manual_seed(11)
    return tuple(torch.randn(3, c, generator=generator, dtype=torch.float64).to(dtype) for c in columns)


def solve(name, dtype, method, **options):
    """Solves as a bare tensor where there is one level, as a tuple otherwise."""
    y0, nfe = starts(name, dtype), [0]

    def function(t, y):
        nfe[0] += 1
        out = FUNCTIONS[name](t, y if isinstance(y, tuple) else (y,))
        return out if isinstance(y, tuple) else out[0]

    times = torch.tensor(options.pop("times", SPANS[name]), dtype=torch.float64)
    state = y0 if len(y0) > 1 else y0[0]
    solution = odeint(function, state, times, method=method, **options)
    solution = solution if isinstance(solution, tuple) else (solution,)
    return {"ode": name, "f64": dtype == torch.float64, "method": method,
            "times": times.tolist(), "tolerance": options.get("rtol", 0.0),
            "start": [y.tolist() for y in y0], "end": [y[-1].tolist() for y in solution],
            "evaluations": nfe[0]}


def main():
    cases = []
    for name in FUNCTIONS:
        for tolerance in (1e-4, 1e-5):
            cases.append(solve(name, torch.float32, "dopri5", rtol=tolerance, atol=tolerance))
        for tolerance in (1e-5, 1e-9):
            cases.append(solve(name, torch.float64, "dopri5", rtol=tolerance, atol=tolerance))
    for name in ("rotation", "forced", "coupled"):
        start, end = SPANS[name]
        for method in ("euler", "midpoint", "heun2"):
            times = [start + (end - start) * (i / 12) ** 1.3 for i in range(13)]
            cases.append(solve(name, torch.float32, method, times=times))
    text = ",\n".join(json.dumps(case) for case in cases)
    pathlib.Path(__file__).with_name("solvers.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
