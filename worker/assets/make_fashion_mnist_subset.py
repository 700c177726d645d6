#!/usr/bin/env python3
"""Makes fashion-mnist-subset.bin.gz from the four files of Fashion-MNIST.

    python3 worker/assets/make_fashion_mnist_subset.py --source FOLDER --out FILE

FOLDER holds the four `*-ubyte.gz` files. The output's bytes depend on nothing else but the version
of zlib. Standard library only.

The file, gzip at level 9, integers little-endian u32:

    magic "SYNFSET\\0"; version 1; train; test; classes; height; width; channels
    labels of the training images, then of the test images, one byte each
    pixels in the same order, [image][row][column][channel], one byte each
"""

import argparse
import gzip
import hashlib
import io
import pathlib
import struct

# Of the unpacked bytes: packagers rewrite gzip headers, so the packed files' checksums differ.
MD5_UNPACKED = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
MAGIC = b"SYNFSET\0"
VERSION = 1
CLASSES = 10
SIDE = 28
TRAIN_PER_CLASS = 1000
TEST_PER_CLASS = 200


def unpack(folder, name):
    """The unpacked bytes of one original, checked against its MD5."""
    path = folder / f"{name}.gz"
    data = gzip.decompress(path.read_bytes())
    found = hashlib.md5(data).hexdigest()
    if found != MD5_UNPACKED[name]:
        raise SystemExit(
            f"{path}: unpacked MD5 is {found}, not {MD5_UNPACKED[name]}: fetch the file again"
        )
    return data


def first_of_each_class(folder, part, per_class):
    """Labels and pixels of the first `per_class` images of each class, in file order."""
    images = unpack(folder, f"{part}-images-idx3-ubyte")
    labels = unpack(folder, f"{part}-labels-idx1-ubyte")
    _, count, height, width = struct.unpack(">IIII", images[:16])
    if (height, width) != (SIDE, SIDE) or struct.unpack(">II", labels[:8])[1] != count:
        raise SystemExit(f"{folder}: {part} has unexpected sizes")
    taken = [0] * CLASSES
    kept_labels, kept_pixels = bytearray(), bytearray()
    for index, label in enumerate(labels[8:]):
        if taken[label] < per_class:
            taken[label] += 1
            start = 16 + index * SIDE * SIDE
            kept_labels.append(label)
            kept_pixels += images[start : start + SIDE * SIDE]
    if taken != [per_class] * CLASSES:
        raise SystemExit(f"{folder}: {part} has too few images of a class: {taken}")
    return kept_labels, kept_pixels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    train_labels, train_pixels = first_of_each_class(arguments.source, "train", TRAIN_PER_CLASS)
    test_labels, test_pixels = first_of_each_class(arguments.source, "t10k", TEST_PER_CLASS)
    header = MAGIC + struct.pack(
        "<7I", VERSION, len(train_labels), len(test_labels), CLASSES, SIDE, SIDE, 1
    )
    packed = io.BytesIO()
    # No name and no time in the gzip header: the same input gives the same bytes.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write(header + train_labels + test_labels + train_pixels + test_pixels)
    arguments.out.write_bytes(packed.getvalue())
    print(f"{hashlib.sha256(packed.getvalue()).hexdigest()}  {arguments.out}")


if __name__ == "__main__":
    main()
