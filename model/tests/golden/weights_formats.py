"""Small checkpoints in every container: `python weights_formats.py` beside this file.

Made with torch 2.15, safetensors 0.8. The values are `autoencoder_weights.uniform(name, 24)` cast
to the tensor's dtype; `strided` is a transposed view and `offset` a slice of a larger storage.
"""

import collections
import os

import torch
from autoencoder_weights import uniform
from safetensors.torch import save_file

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


def tensors():
    state = collections.OrderedDict()
    for name, dtype in DTYPES.items():
        state[f"layer.{name}"] = torch.from_numpy(uniform(name, 24)).reshape(2, 3, 4).to(dtype)
    state["strided"] = torch.from_numpy(uniform("strided", 24)).reshape(4, 6).t()
    state["offset"] = torch.from_numpy(uniform("offset", 24)).reshape(6, 4)[2:5, 1:3]
    state["parameter"] = torch.nn.Parameter(torch.from_numpy(uniform("parameter", 24)))
    state["steps"] = torch.tensor(7)
    return state


class Callback:
    """What trainers leave in a checkpoint: a class that the reader must not import or call."""

    def __init__(self):
        self.best = 0.5

    def __reduce__(self):
        return os.system, ("touch pickle_was_executed",)


if __name__ == "__main__":
    trainer = {"epoch": 3, "callbacks": {"checkpoint": Callback()}, "state_dict": tensors(), "big": 1 << 80}
    torch.save(trainer, "weights/zip.ckpt")
    torch.save(trainer, "weights/legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(dict(tensors()), "weights/legacy_protocol4.bin", _use_new_zipfile_serialization=False, pickle_protocol=4)
    torch.save(dict(tensors()), "weights/zip_protocol4.pth", pickle_protocol=4)
    contiguous = {key: value.detach().contiguous() for key, value in tensors().items()}
    save_file(contiguous, "weights/plain.safetensors", metadata={"made": "by hand"})
