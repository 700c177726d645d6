"""Decode, random-resized-crop to 224, flip and normalise with Pillow: pictures per second of one
thread, of processor time, over the pictures of worker/benches/decode.rs.

    pip install pillow numpy
    python decode_pillow.py IMAGENET_FOLDER [--passes 5]

The steps are torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize, without
what its classes add. Where Pillow can decode at a half, a quarter or an eighth of the size and the
crop still has more than 224 pixels each way, `draft` lets it: the faster of the two forms counts.
"""

import argparse
import io
import math
import random
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def random_crop(width, height):
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def train(data, draft):
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    box = random_crop(width, height)
    if draft:
        shrink = min((box[2] - box[0]) / 224, (box[3] - box[1]) / 224, 8)
        if shrink >= 2:
            image.draft("RGB", (int(width / shrink), int(height / shrink)))
            box = [round(side * image.size[0] / width) for side in box]
    image = image.convert("RGB").crop(tuple(box))
    image = image.resize((224, 224), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return (np.asarray(image, dtype=np.float32) / 255 - MEAN) / STD


def decode(data, _):
    return Image.open(io.BytesIO(data)).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    files = sorted((arguments.folder / "one_per_class").glob("*/*"))
    pictures = [file.read_bytes() for file in files]
    for name, work, draft in [("decode", decode, 0), ("train", train, 0), ("train, draft", train, 1)]:
        rates = []
        for _ in range(arguments.passes):
            begin = time.process_time()
            for data in pictures:
                work(data, draft)
            rates.append(len(pictures) / (time.process_time() - begin))
        print(f"{name}: median {statistics.median(rates):.0f}/s, {min(rates):.0f} to {max(rates):.0f}")


main()
