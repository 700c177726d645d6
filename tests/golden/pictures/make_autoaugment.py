"""What torchvision's AutoAugment makes of pictures of this folder: autoaugment.csv.

    pip install torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy==2.4.6
    python make_autoaugment.py

A line is a picture, what was done to it and the SHA-256 of its RGB bytes afterwards. Done are each
operation with each of its ten magnitudes and both signs, and each sub-policy for ImageNet with both
of its steps, of which the second one's sign is negative. Lines that begin with `policy` have the
probabilities of a sub-policy.
"""

import hashlib
from pathlib import Path

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import AutoAugment, _apply_op

HERE = Path(__file__).parent


def main():
    automatic = AutoAugment()
    lines = ["picture,what,magnitude or sub-policy,sign,SHA-256 of the RGB bytes"]
    for name in ["crop.png", "made.png"]:
        image = Image.open(HERE / name).convert("RGB")
        space = automatic._augmentation_space(10, (image.height, image.width))

        def apply(image, kind, index, sign):
            magnitudes, signed = space[kind]
            value = float(magnitudes[index]) if magnitudes.ndim else 0.0
            value *= sign if signed else 1.0
            return _apply_op(image, kind, value, InterpolationMode.NEAREST, None)

        def line(what, index, sign, done):
            digest = hashlib.sha256(done.tobytes()).hexdigest()
            lines.append(f"{name},{what},{index},{sign},{digest}")

        for kind, (magnitudes, signed) in space.items():
            for index in range(10 if magnitudes.ndim else 1):
                for sign in (1, -1) if signed else (1,):
                    line(kind, index, sign, apply(image, kind, index, sign))
        for index, (first, second) in enumerate(automatic.policies):
            done = apply(image, first[0], first[2] or 0, 1)
            done = apply(done, second[0], second[2] or 0, -1)
            line("sub-policy", index, "both", done)
    for index, (first, second) in enumerate(automatic.policies):
        lines.append(f"policy,{first[0]} {second[0]},{index},{first[1]},{second[1]}")
    (HERE / "autoaugment.csv").write_text("\n".join(lines) + "\n")


main()
