"""Makes the pictures of this folder with Pillow, and what Pillow makes of them.

    pip install pillow==13.0.0 numpy==2.4.6
    python make.py [FOLDER WITH imagenet/one_per_class]

small.*, progressive.jpg, cmyk*.jpg: 40 x 24 pixels, and the RGB bytes that Pillow decodes of
small.jpg (progressive.jpg has the same coefficients) and of cmyk.jpg. made.png: 301 x 203 pixels;
centre.png: short side to 256, centre 224; crop.png: its box (31, 17, 31 + 201, 17 + 142) to 224.
centre_means.csv: means of 32 x 32 blocks of the centre crops of some photographs.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent


def made(width, height, seed):
    """Waves, edges and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(-6, 7, (height, width))
    red = 128 + 90 * np.sin(x / 9 + y / 31)
    green = 128 + 90 * np.cos(x * y / 700)
    blue = np.where((x // 13 + y // 7) % 2, 200, 60)
    channels = [np.clip(c + noise, 0, 255).astype(np.uint8) for c in (red, green, blue)]
    return Image.fromarray(np.dstack(channels))


def centre(image, short=256, side=224):
    """torchvision's Resize(short) and CenterCrop(side)."""
    width, height = image.size
    if width <= height:
        size = (short, int(short * height / width))
    else:
        size = (int(short * width / height), short)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return image.crop((left, top, left + side, top + side))


def jpeg(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def without_adobe(data):
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def main():
    small = made(320, 192, 1).resize((40, 24), Image.Resampling.BOX)
    data = jpeg(small, quality=85)
    (HERE / "small.jpg").write_bytes(data)
    (HERE / "small.rgb").write_bytes(Image.open(io.BytesIO(data)).tobytes())
    (HERE / "progressive.jpg").write_bytes(jpeg(small, quality=85, progressive=True))
    cmyk = small.convert("CMYK")
    data = jpeg(cmyk, quality=95, subsampling=0)
    (HERE / "cmyk.jpg").write_bytes(data)
    (HERE / "cmyk.rgb").write_bytes(Image.open(io.BytesIO(data)).convert("RGB").tobytes())
    (HERE / "cmyk_no_adobe.jpg").write_bytes(without_adobe(data))

    image = made(301, 203, 2)
    image.save(HERE / "made.png", optimize=True)
    centre(image).save(HERE / "centre.png", optimize=True)
    box = image.crop((31, 17, 31 + 201, 17 + 142))
    box.resize((224, 224), Image.Resampling.BILINEAR).save(HERE / "crop.png", optimize=True)

    if len(sys.argv) > 1:
        root = Path(sys.argv[1])
        lines = ["file,mean of each 32 x 32 block and channel"]
        for path in sorted(root.glob("*/*"))[::31]:
            pixels = np.asarray(centre(Image.open(path).convert("RGB")), dtype=np.float64)
            means = pixels.reshape(7, 32, 7, 32, 3).mean(axis=(1, 3)).round(1).ravel()
            name = path.relative_to(root).as_posix()
            lines.append(",".join([name, *(f"{mean:g}" for mean in means)]))
        (HERE / "centre_means.csv").write_text("\n".join(lines) + "\n")


main()
