"""Golden decodes and crops by PIL, from synthetic images.

Run in this folder with Pillow 13.0.0 (libjpeg-turbo 3.2.0, libwebp 1.6.0) and numpy:
    python generate.py
Writes decode/NAME.EXT beside its pixels decode/NAME.EXT.rgb.png (and, of some, reduced by a
divisor, decode/NAME.EXT.DIVISOR.rgb.png), and crop/*.png.
"""

import pathlib

import numpy as np
from PIL import Image, ImageDraw

HERE = pathlib.Path(__file__).parent


def scene(width, height, seed):
    """Gradients, sharp shapes and a patch of noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin(x * y / 200)], -1)
    image = Image.fromarray(rgb.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        draw.ellipse([x0, y0, x0 + width // 4, y0 + height // 5], fill=color)
        draw.line([x0, y0, width - x0, height - y0], fill=color[::-1])
    pixels = np.array(image)
    patch = pixels[: height // 3, : width // 3]
    patch[:] = rng.integers(0, 256, patch.shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def adm(image, size):
    """The ADM centre crop as MATH.md section 8 states it."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def center(image, size):
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.BICUBIC)


def save(name, image, **options):
    path = HERE / "decode" / name
    image.save(path, **options)
    reference(path)


def reference(path):
    Image.open(path).convert("RGB").save(f"{path}.rgb.png", optimize=True)


def reduced(name):
    """What libjpeg makes at a half, a quarter and an eighth of the sides."""
    path = HERE / "decode" / name
    for divisor in [2, 4, 8]:
        image = Image.open(path)
        image.draft(image.mode, tuple(side // divisor for side in image.size))
        image.convert("RGB").save(f"{path}.{divisor}.rgb.png", optimize=True)


def patched(name, source, old, new):
    """Copies a file with one byte string replaced: for variants that PIL does not write."""
    content = (HERE / "decode" / source).read_bytes()
    assert content.count(old) == 1, (name, content.count(old))
    path = HERE / "decode" / name
    path.write_bytes(content.replace(old, new))
    reference(path)


def decodes():
    image = scene(45, 37, 1)
    for subsampling in ["4:4:4", "4:2:2", "4:2:0"]:
        name = subsampling.replace(":", "")
        save(f"rgb-{name}.jpg", image, quality=90, subsampling=subsampling)
    save("progressive.jpg", image, quality=85, progressive=True)
    save("restarts.jpg", image, quality=85, restart_marker_blocks=2)
    save("gray.jpg", image.convert("L"), quality=90)
    save("tiny.jpg", image.resize((3, 2)), quality=90, subsampling="4:4:4")
    save("cmyk.jpg", image.convert("CMYK"), quality=90)
    save("adobe-rgb.jpg", image, quality=90, keep_rgb=True)
    adobe = b"Adobe\0\x64\0\0\0\0"
    patched("ycck.jpg", "cmyk.jpg", adobe + b"\0", adobe + b"\2")
    for name in ["rgb-444.jpg", "rgb-422.jpg", "rgb-420.jpg", "progressive.jpg", "gray.jpg", "ycck.jpg"]:
        reduced(name)
    save("profile.jpg", image, quality=90, icc_profile=b"not a profile" * 20)
    save("really-png.jpeg", image, format="PNG")

    save("rgb.png", image)
    save("palette.png", image.quantize(40))
    save("palette-transparent.png", image.quantize(40), transparency=3)
    save("palette-1bit.png", image.quantize(2), bits=1)
    save("gray.png", image.convert("L"))
    save("bilevel.png", image.convert("1"))
    save("gray-alpha.png", image.convert("LA"))
    rgba = image.copy()
    rgba.putalpha(image.convert("L"))
    save("rgba.png", rgba)
    # PIL clips 16-bit gray at 255, which leaves white; the high byte is what it gives for
    # 16-bit colour and what is wanted here.
    gray16 = np.asarray(image.convert("L"), np.uint16) * 251
    Image.fromarray(gray16).save(HERE / "decode" / "gray16.png")
    high_byte = Image.fromarray((gray16 >> 8).astype(np.uint8)).convert("RGB")
    high_byte.save(HERE / "decode" / "gray16.png.rgb.png", optimize=True)

    save("lossy.webp", image, quality=80)
    save("lossless.webp", image, lossless=True)
    save("alpha.webp", rgba, lossless=True)


def crops():
    sources = {"wide": (151, 98), "tall": (70, 131), "small": (40, 33), "strip": (190, 19)}
    for seed, (name, (width, height)) in enumerate(sources.items()):
        image = scene(width, height, seed)
        image.save(HERE / "crop" / f"{name}.png", optimize=True)
        for size in [24, 48]:
            squares = {
                "adm": adm(image, size),
                "resize": image.resize((size, size), Image.BILINEAR),
                "center": center(image, size),
            }
            for crop, square in squares.items():
                square.save(HERE / "crop" / f"{name}.{crop}.{size}.png", optimize=True)


if __name__ == "__main__":
    for folder in ["decode", "crop"]:
        (HERE / folder).mkdir(exist_ok=True)
    decodes()
    crops()
