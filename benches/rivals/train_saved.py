#!/usr/bin/env python3
"""Trains a network on CIFAR-10's binary files with the PyTorch engine `saved` of stol_torch.py.

One line of JSON per epoch: loss, training accuracy by the last time step's logits, test accuracy by
the logits summed over time steps (running statistics), seconds. The loss is cross-entropy, the rate
follows a cosine over the epochs, images are shifted, flipped and cut out as `data.augment = "standard"`
does for CIFAR, in an order of its own. Compare with
  synfire train configs/small-cifar10-cpu.toml --set loss.kind=ce --set loss.lambda=
"""
import argparse
import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import stol_torch  # noqa: E402

MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32).reshape(1, 3, 1, 1)
STD = np.array([0.2023, 0.1994, 0.2010], np.float32).reshape(1, 3, 1, 1)


def read(folder, names):
    raw = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names]).reshape(-1, 3073)
    return raw[:, 1:].reshape(-1, 3, 32, 32), raw[:, 0].astype(np.int64)


def augmented(images, rng):
    """Shift by up to 4 pixels, flip, cutout of up to 16 x 16, each image with draws of its own."""
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    out = np.empty_like(images)
    for i in range(len(images)):
        top, left = rng.integers(0, 9, 2)
        image = padded[i, :, top:top + 32, left:left + 32]
        image = image[:, :, ::-1] if rng.integers(2) else image
        out[i] = image
        y, x = rng.integers(0, 32, 2)
        out[i, :, max(y - 8, 0):y + 8, max(x - 8, 0):x + 8] = 0
    return out


def normalised(images):
    return torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / STD)


@torch.no_grad()
def evaluate(engine, images, labels, time_steps, batch=200):
    """Share that is right by the logits summed over the time steps, with running statistics."""
    net, params, buffers, right = engine.net, engine.params, engine.buffers, 0
    for start in range(0, len(images), batch):
        frame, potentials, total = normalised(images[start:start + batch]), {}, 0
        for _ in range(time_steps):
            v = {"x": frame}
            for q in net.layers:
                n, x = q.name, v[q.ins[0]]
                if q.kind == "lif":
                    u = x
                    if n in potentials:
                        old = potentials[n]
                        u = x + torch.where(old < stol_torch.V_TH, old, 0.0) / net.tau
                    potentials[n] = u
                    v[q.out] = (u >= stol_torch.V_TH).float()
                elif q.kind == "conv":
                    v[q.out] = F.conv2d(x, params[n + ".weight"], None, q.a["s"], q.a["p"])
                elif q.kind == "linear":
                    v[q.out] = F.linear(x, params[n + ".weight"], params[n + ".bias"])
                elif q.kind == "bn":
                    mean, var = buffers[n + ".running_mean"], buffers[n + ".running_var"]
                    weight, bias = params[n + ".weight"], params[n + ".bias"]
                    v[q.out] = F.batch_norm(x, mean, var, weight, bias, False, 0.0, stol_torch.BN_EPS)
                elif q.kind == "maxpool":
                    v[q.out] = F.max_pool2d(x, q.a["k"], q.a["s"], q.a["p"])
                elif q.kind == "avgpool":
                    v[q.out] = F.avg_pool2d(x, q.a["k"])
                elif q.kind == "globalavg":
                    v[q.out] = x.mean((2, 3), keepdim=True)
                elif q.kind == "flatten":
                    v[q.out] = x.flatten(1)
                else:
                    v[q.out] = x + v[q.ins[1]]
            total = total + v[net.output]
        right += int((total.argmax(1).numpy() == labels[start:start + batch]).sum())
    return right / len(images)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=pathlib.Path, required=True, help="folder with data_batch_1.bin ... test_batch.bin")
    p.add_argument("--files", type=int, default=5, help="training files of 10,000 images")
    p.add_argument("--model", choices=("small", "ms_resnet18"), default="small")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--steps-T", type=int, default=4)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--lr", type=float, default=0.02)
    p.add_argument("--max-batches", type=int)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(a.seed)
    images, labels = read(a.data, [f"data_batch_{i + 1}.bin" for i in range(a.files)])
    test_images, test_labels = read(a.data, ["test_batch.bin"])
    build = stol_torch.MODELS[a.model][0]
    engine = stol_torch.Saved(build(), stol_torch.Options("saved", channels_last=True, lr=a.lr))
    done = 0
    for epoch in range(a.epochs):
        engine.opts.lr = a.lr * (1 + math.cos(math.pi * epoch / a.epochs)) / 2
        order, losses, begin = rng.permutation(len(images)), [], time.perf_counter()
        for start in range(0, len(images) - a.batch + 1, a.batch):
            if a.max_batches and done >= a.max_batches:
                break
            chosen = order[start:start + a.batch]
            frame = engine.to_device(normalised(augmented(images[chosen], rng)))
            engine.batch([frame] * a.steps_T, torch.from_numpy(labels[chosen]))
            losses.append(float(torch.stack(engine.losses).mean()))
            done += 1
        seconds = time.perf_counter() - begin
        print(json.dumps({
            "seed": a.seed, "epoch": epoch + 1, "lr": engine.opts.lr, "loss": round(float(np.mean(losses)), 4),
            "test_accuracy": round(evaluate(engine, test_images, test_labels, a.steps_T), 4),
            "train_seconds": round(seconds, 1), "images_per_second": round(len(losses) * a.batch / seconds, 1),
        }), flush=True)


if __name__ == "__main__":
    main()
