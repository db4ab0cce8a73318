"""Writes metrics.json: scores of hashed features by pytorch-fid and torch-fidelity, and features of
pytorch-fid's Inception under hashed weights.

Run with torch 2.15, pytorch-fid 0.3.0, torch-fidelity 0.4.0:  python metrics.py
`hashed` has its counterpart in ../metrics.rs, so that inputs and 24 million weights need no file.
"""

import json
import pathlib

import numpy as np
import pytorch_fid.inception
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric


def hashed(name, count):
    """`count` numbers in [0, 1), from the position and the name alone."""
    start = 2166136261
    for byte in name.encode():
        start = (start ^ byte) * 16777619 % 2**32
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(start)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(2246822519)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(3266489917)
    return ((x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)).astype(np.float32)


def features(name, rows, dims, spread):
    """Rows with a mean, correlations and a skew."""
    u = hashed(name, rows * dims).reshape(rows, dims)
    return (u * np.float32(spread) + np.roll(u, 1, axis=1) + u * u).astype(np.float32)


def weight(name, shape):
    u = hashed(name, int(np.prod(shape))).reshape(shape)
    if name.endswith(("running_var", "bn.weight")):
        return u + np.float32(0.5)
    if len(shape) == 1:
        return (u - np.float32(0.5)) * np.float32(0.4)
    bound = np.float32(1.5) / np.float32(np.sqrt(np.prod(shape[1:], dtype=np.float64)))
    return (u * 2 - 1) * (bound * np.float32(1.5))


def inception():
    """pytorch-fid's network with hashed weights, and their names and shapes."""
    shapes = {}

    def weights(*_, **__):
        reference = pytorch_fid.inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        for module in reference.state_dict():
            if not module.endswith("num_batches_tracked"):
                shapes[module] = list(reference.state_dict()[module].shape)
        state = {name: torch.tensor(weight(name, shape)) for name, shape in shapes.items()}
        return state | {n: t for n, t in reference.state_dict().items() if n not in state}

    pytorch_fid.inception.load_state_dict_from_url = weights
    full = pytorch_fid.inception.fid_inception_v3()
    pytorch_fid.inception.fid_inception_v3 = lambda: full
    return pytorch_fid.inception.InceptionV3([3]).eval(), full, shapes


def inception_cases():
    network, full, shapes = inception()
    spatial = []
    full.Mixed_6d.branch1x1.register_forward_hook(lambda *args: spatial.append(args[2]))
    cases = []
    for size in ((20, 31), (299, 299), (330, 310)):
        pixels = np.floor(hashed(f"image {size[0]}", 2 * size[0] * size[1] * 3) * 256)
        x = torch.tensor(pixels.reshape(2, *size, 3)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            pool = network(x)[0][:, :, 0, 0]
        logits = pool @ full.fc.weight.T
        space = spatial.pop()[:, :7].permute(0, 2, 3, 1).flatten(1)
        keep = lambda t, step: t[:, ::step].double().round(decimals=7).tolist()
        cases.append({"height": size[0], "width": size[1], "pool": keep(pool, 41),
                      "spatial": keep(space, 43), "logits": keep(logits, 21)})
        print(size, "pool std", pool.std().item(), "logits std", logits.detach().std().item())
    return {"shapes": shapes, "cases": cases}


def frechet_of_rows(a, b):
    """The Frechet distance of two small sets, exactly: with S = X^T X / (n - 1) for centred rows X,
    tr (S1 S2)^1/2 is the sum of the singular values of X1 X2^T / sqrt((n1 - 1) (n2 - 1))."""
    means = [x.mean(0) for x in (a, b)]
    rows = [(x - m) / np.sqrt(len(x) - 1) for x, m in zip((a, b), means)]
    joint = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + sum(np.square(x).sum() for x in rows) - 2 * joint)


def small_sets():
    """FID and sFID (ADM: the first 7 channels of Mixed_6d's branch1x1) of 6 and 5 hashed images."""
    network, full, _ = inception()
    spatial, pool = [], []
    full.Mixed_6d.branch1x1.register_forward_hook(lambda *args: spatial.append(args[2]))
    for name, count in (("set a", 6), ("set b", 5)):
        pixels = np.floor(hashed(name, count * 24 * 24 * 3) * 256)
        with torch.no_grad():
            x = torch.tensor(pixels.reshape(count, 24, 24, 3)).permute(0, 3, 1, 2).float() / 255
            pool.append(network(x)[0][:, :, 0, 0].double().numpy())
    spatial = [x[:, :7].permute(0, 2, 3, 1).flatten(1).double().numpy() for x in spatial]
    return {"fid": frechet_of_rows(*pool), "sfid": frechet_of_rows(*spatial)}


def statistic_cases():
    cases = []
    for rows, other, dims in ((400, 300, 24), (150, 500, 40), (60, 90, 12)):
        a, b = features(f"a {dims}", rows, dims, 1.0), features(f"b {dims}", other, dims, 1.3)
        moments = [(x.astype(np.float64).mean(0), np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b)]
        ta, tb = torch.tensor(a), torch.tensor(b)
        rows_kid = min(rows, other)
        kid = kid_features_to_metric(ta[:rows_kid].double(), tb[:rows_kid].double(), kid_subsets=1,
                                     kid_subset_size=rows_kid, verbose=False)
        prc = prc_features_to_metric(ta, tb, verbose=False)
        isc = isc_features_to_metric(ta.double() * 4, splits=2, shuffle=False)
        cases.append({
            "rows": rows, "other": other, "dims": dims,
            "fid": float(calculate_frechet_distance(*moments[0], *moments[1])),
            "kid": kid["kernel_inception_distance_mean"],
            "precision": prc["precision"], "recall": prc["recall"],
            "inception_score": [isc["inception_score_mean"], isc["inception_score_std"]],
        })
    return cases


if __name__ == "__main__":
    golden = {"statistics": statistic_cases(), "inception": inception_cases(), "small_sets": small_sets()}
    pathlib.Path(__file__).with_name("metrics.json").write_text(json.dumps(golden) + "\n")
    print(golden["statistics"])
