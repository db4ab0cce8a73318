"""Goldens of the tiny autoencoders: `python autoencoder_tiny.py` beside this file.

The TAESD layout (TAESDXL's too, and with 16 channels TAESD3's and TAEF1's) comes from diffusers' AutoencoderTiny, the TAEF2 one (pool branches) from the
module below, written from MATH.md section 7. Made with torch 2.15, diffusers 0.42.1,
safetensors 0.8.
"""

import torch
from autoencoder_weights import fill, uniform
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import nn


class Block(nn.Module):
    def __init__(self, pool):
        super().__init__()
        conv = lambda: nn.Conv2d(64, 64, 3, padding=1)
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False)
            )

    def forward(self, x):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, z):
        return torch.tanh(z / 3) * 3


def encoder(channels):
    layers = [nn.Conv2d(3, 64, 3, padding=1), Block(False)]
    for stage in range(3):
        layers += [nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)] + [Block(stage == 2) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(64, channels, 3, padding=1))


def decoder(channels):
    layers = [Clamp(), nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers += [Block(stage == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(False), nn.Conv2d(64, 3, 3, padding=1))


class Taef2(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = encoder(32), decoder(32)

    def encode(self, x):
        return self.encoder(x / 2 + 0.5)

    def decode(self, z):
        return self.decoder(z) * 2 - 1


class Taesd(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.net = AutoencoderTiny(latent_channels=channels)
        self.encoder, self.decoder = self.net.encoder, self.net.decoder

    def named_parameters(self):
        return self.net.named_parameters()

    def encode(self, x):
        return self.net.encode(x).latents

    def decode(self, z):
        return self.net.decode(z).sample


if __name__ == "__main__":
    images = torch.from_numpy(uniform("images", 3 * 3 * 16 * 24).reshape(3, 3, 16, 24))
    for name, net in {"taesd": Taesd(4), "taesd3": Taesd(16), "taef2": Taef2()}.items():
        with torch.no_grad():
            fill(net)
            latents = net.encode(images)
            golden = {"images": images, "latents": latents, "decoded": net.decode(latents)}
            golden = {key: value.contiguous() for key, value in golden.items()}
        shapes = {key: ",".join(map(str, p.shape)) for key, p in net.named_parameters()}
        save_file(golden, f"autoencoder_{name}.safetensors", metadata=shapes)
        print(name, latents.std().item(), golden["decoded"].std().item())
