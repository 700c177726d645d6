#!/usr/bin/env python3
"""Makes the files of this folder: python3 make.py (PyTorch; run with 2.15.0).

NET.weights.safetensors, NET.run.safetensors
    Weights of a narrow network, and what the engine `saved` of benches/rivals/stol_torch.py makes of
    them: logits of T time steps in training and in evaluation, running statistics after. Seeds are
    searched for until no membrane potential comes closer to the threshold than MARGIN.
authors.pth, torchvision.pth, ours.safetensors
    One SEW-ResNet18 of one channel in three layouts: a checkpoint as the SEW-ResNet authors'
    imagenet/train.py saves it, their containers' `module` in the names; torchvision's names under
    those of data parallel training, in the form before PyTorch 1.6; our own.
numbers.pth
    Small tensors of every kind of number, transposed, cut out, and sharing a storage.
"""
import argparse
import json
import os
import struct
import sys
from collections import OrderedDict

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../benches/rivals"))
import check_weights  # noqa: E402
import stol_torch  # noqa: E402

MARGIN = 1e-4
T = 4


def write(name, tensors, meta):
    header, data = {"__metadata__": meta}, b""
    for key in sorted(tensors):
        raw = tensors[key].contiguous().numpy().tobytes()
        header[key] = {"dtype": "F32", "shape": list(tensors[key].shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def narrow(model, divisor, channels=3):
    """Random weights for a network of stol_torch.py with channels divided."""

    class Narrow(stol_torch.Network):
        def conv(self, name, x, cin, cout, *rest, **kw):
            cin = channels if x == "x" else cin // divisor
            return super().conv(name, x, cin, cout // divisor, *rest, **kw)

        def bn(self, name, x, c):
            out = super().bn(name, x, c // divisor)
            self.params[name + ".weight"].uniform_(0.7, 1.6)
            self.params[name + ".bias"].uniform_(0.0, 0.6)
            self.buffers[name + ".running_mean"].uniform_(-0.2, 0.2)
            self.buffers[name + ".running_var"].uniform_(0.3, 1.0)
            return out

        def linear(self, name, x, cin, cout):
            return super().linear(name, x, cin // divisor, cout)

    plain, stol_torch.Network = stol_torch.Network, Narrow
    net = stol_torch.MODELS[model][0](classes=5)
    stol_torch.Network = plain
    return {**net.params, **net.buffers}


def logits(model, divisor, side, samples):
    for seed in range(1000):
        torch.manual_seed(seed)
        weights = narrow(model, divisor)
        x = torch.randn(samples, 3, side, side)
        train, after, margin = check_weights.logits(model, weights, x, T, True)
        evaluated, _, other = check_weights.logits(model, weights, x, T, False)
        spread = min(float(y.std(1).min()) for y in (train[-1], evaluated[-1]))
        differ = min(float((y[-1][0] - y[-1][1]).abs().max()) for y in (train, evaluated))
        if min(margin, other) > MARGIN and differ > 1e-2:
            break
    else:
        sys.exit(f"{model}: no seed keeps potentials away from the threshold")
    print(f"{model}: seed {seed}, margin {min(margin, other):.1e}, spread {spread:.2f}, samples differ by {differ:.3f}")
    meta = {"model": model, "seed": str(seed), "torch": torch.__version__}
    write(f"{model}.weights.safetensors", weights, meta)
    run = {"input": x, "logits_train": train, "logits_evaluate": evaluated}
    write(f"{model}.run.safetensors", {**run, **{f"after/{k}": v for k, v in after.items()}}, meta)


def sew_resnet18():
    """Our names, with one channel where the published network has 64."""
    torch.manual_seed(18)
    tensors = OrderedDict()

    def conv(name, cout, cin, k):
        tensors[name + ".weight"] = torch.randn(cout, cin, k, k)

    def bn(name, c):
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{part}"] = torch.rand(c) + 0.5

    conv("stem.conv", 1, 3, 7)
    bn("stem.bn", 1)
    cin = 1
    for i, c in enumerate((1, 2, 4, 8), 1):
        for j in range(2):
            p = f"layer{i}.{j}"
            conv(p + ".conv1", c, cin, 3)
            bn(p + ".bn1", c)
            conv(p + ".conv2", c, c, 3)
            bn(p + ".bn2", c)
            if cin != c:
                conv(p + ".down.conv", c, cin, 1)
                bn(p + ".down.bn", c)
            cin = c
    tensors["fc.weight"], tensors["fc.bias"] = torch.randn(10, 8), torch.randn(10)
    return tensors


def renamed(tensors, rename):
    state = OrderedDict()
    for name, value in tensors.items():
        theirs = rename(name)
        state[theirs] = value
        if name.endswith("running_var"):
            state[theirs.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    state._metadata = OrderedDict({"": {"version": 1}, "bn1": {"version": 2}})  # as Module.state_dict() has it
    return state


def torchvision_name(name):
    for ours, theirs in (("stem.conv", "conv1"), ("stem.bn", "bn1"), ("down.conv", "downsample.0"), ("down.bn", "downsample.1")):
        name = name.replace(ours, theirs)
    return "module." + name


def authors_name(name):
    for ours, theirs in (("stem.", ""), ("down.conv", "downsample.0.module.0"), ("down.bn", "downsample.0.module.1")):
        name = name.replace(ours, theirs)
    if name.startswith("layer"):
        for n in "12":
            name = name.replace(f".conv{n}.", f".conv{n}.module.0.").replace(f".bn{n}.", f".conv{n}.module.1.")
    elif name.split(".")[0] in ("conv", "bn"):
        name = name.replace("conv.", "conv1.").replace("bn.", "bn1.")
    return name


def layouts():
    tensors = sew_resnet18()
    write("ours.safetensors", tensors, {"torch": torch.__version__})
    parameters = [torch.nn.Parameter(torch.ones(3))]
    sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    parameters[0].sum().backward()
    sgd.step()
    checkpoint = {
        "model": renamed(tensors, authors_name),
        "optimizer": sgd.state_dict(),
        "lr_scheduler": {"T_max": 320, "base_lrs": [0.1], "last_epoch": 319, "_step_count": 320},
        "epoch": 319,
        "args": argparse.Namespace(model="sew_resnet18", lr=0.1, amp=True, output_dir=None, connect_f="ADD"),
        "max_test_acc1": 63.18,
        "test_acc5_at_max_test_acc1": 84.53,
    }
    torch.save(checkpoint, os.path.join(HERE, "authors.pth"))
    torch.save(renamed(tensors, torchvision_name), os.path.join(HERE, "torchvision.pth"), _use_new_zipfile_serialization=False)


def numbers():
    base = torch.arange(24, dtype=torch.float32) / 8
    tensors = OrderedDict(
        f32=base[:6].clone().reshape(2, 3),
        f64=(base[:6] / 3).double(),
        f16=torch.tensor([0.0, -2.5, 65504.0, 6e-8, 1 / 3], dtype=torch.float16),
        bf16=torch.tensor([0.0, -2.5, 3e38, 1 / 3], dtype=torch.bfloat16),
        transposed=base.reshape(4, 6).t(),
        cut_out=base.reshape(4, 6)[1:3, ::2],
        channels_last=base.clone().reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        whole=torch.tensor([3, -4]),
    )
    torch.save(tensors, os.path.join(HERE, "numbers.pth"))
    wide = {k: v.detach().float().contiguous() for k, v in tensors.items() if k != "whole"}
    write("numbers.safetensors", wide, {"torch": torch.__version__})


if __name__ == "__main__":
    logits("small", 8, 16, 4)
    logits("ms_resnet18", 32, 16, 4)
    logits("sew_resnet34", 32, 32, 3)
    layouts()
    numbers()
