#!/usr/bin/env python3
"""Loads weights that synfire has exported into the engine `saved` of stol_torch.py and compares logits.

    python check_weights.py WEIGHTS RUN

WEIGHTS is a .safetensors file of `synfire train --save-weights`. RUN is a .safetensors file with what
synfire computed from them: `input` [N, C, H, W], shown at every time step, `logits_train` and
`logits_evaluate` [T, N, K], `after/NAME` for the running statistics after the T time steps of
training; its metadata name the `model`. tests/logits.rs writes such files.

Prints the largest differences; exit status 1 if one of the logits is more than 1e-5.
"""
import os
import sys

import torch

import stol_torch
from stol_torch import Network, Options, Saved, read_safetensors

TOLERANCE = 1e-5


def network(model, tensors):
    """stol_torch's network with the weights, and so the widths, of a file."""

    class FromFile(Network):
        def take(self, name, parameters, buffers=()):
            self.params.update({f"{name}.{part}": tensors[f"{name}.{part}"] for part in parameters})
            self.buffers.update({f"{name}.{part}": tensors[f"{name}.{part}"] for part in buffers})

        def conv(self, name, x, cin, cout, k=3, stride=1, padding=1):
            self.take(name, ["weight"])
            return self.add("conv", name, x, s=stride, p=padding)

        def bn(self, name, x, c):
            self.take(name, ["weight", "bias"], ["running_mean", "running_var"])
            return self.add("bn", name, x)

        def linear(self, name, x, cin, cout):
            self.take(name, ["weight", "bias"])
            return self.add("linear", name, x)

    stol_torch.Network = FromFile
    net = stol_torch.MODELS[model][0]()
    stol_torch.Network = Network
    unused = sorted(set(tensors) - set(net.params) - set(net.buffers))
    assert not unused, f"the network of stol_torch.py has no {unused}"
    return net


def logits(model, tensors, x, steps, training):
    """-> logits [T, N, K], running statistics after, and how close a potential came to the threshold."""
    engine = Saved(network(model, tensors), Options("saved"))
    if not training:
        name_of = {id(v): k[: -len(".weight")] for k, v in engine.params.items()}

        def bn_forward(x, weight, bias):
            name = name_of[id(weight)]
            mean, var = engine.buffers[name + ".running_mean"], engine.buffers[name + ".running_var"]
            inv = (var + stol_torch.BN_EPS).rsqrt()
            shaped = [v[None, :, None, None] for v in (mean, inv, weight, bias)]
            return (x - shaped[0]) * shaped[1] * shaped[2] + shaped[3], mean, inv, var

        engine.bn_forward = bn_forward
    seen, old, buffers, margin = [], None, engine.buffers, float("inf")
    weights = {k: v for k, v in engine.params.items() if v.dim() == 4}
    with torch.no_grad():
        for _ in range(steps):
            y, old, buffers = engine.forward(engine.params, weights, buffers, x, old)
            seen.append(y)
            potentials = [v for k, v in old.items() if k.endswith("/u")]
            margin = min([margin] + [float((u - stol_torch.V_TH).abs().min()) for u in potentials])
    return torch.stack(seen), buffers, margin


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    tensors, _ = read_safetensors(sys.argv[1])
    run, meta = read_safetensors(sys.argv[2])
    worst = 0.0
    for phase in ("train", "evaluate"):
        want = run[f"logits_{phase}"]
        got, buffers, margin = logits(meta["model"], tensors, run["input"], len(want), phase == "train")
        difference = float((got - want).abs().max())
        worst = max(worst, difference)
        print(f"{meta['model']} {phase}: logits differ by at most {difference:.2e} (largest {float(want.abs().max()):.3f}); "
              f"potentials come within {margin:.1e} of the threshold")
        if phase == "train":
            after = [float((buffers[k[6:]] - v).abs().max()) for k, v in run.items() if k.startswith("after/")]
            print(f"{meta['model']} {phase}: running statistics after differ by at most {max(after):.2e}")
    sys.exit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    main()
