"""What the work of a batch costs at least: operations and bytes, layer by layer and phase by phase.

Bytes are those that the kernels of worker/src/kernel/cuda move in bf16, by what each reads and writes once:
convolutions read and write bf16; what they wrote stays bf16; spikes and counts are bf16; membrane potentials, the
stream of MS-ResNet, its errors and what shortcuts hand down are f32. Operations are the multiply-accumulates of
convolutions times two; everything else is bound by memory.

A window of k time steps: of T time steps the forward runs T times, and the backward over the sum of min(t + 1, k).
"""

from dataclasses import dataclass

# Assumptions, not measured by this repository: what a large bf16 product and a kernel that moves memory, bytes read
# plus bytes written, may reach of the 989 TFLOP/s and 4.8 TB/s that NVIDIA states for an H200. tests/gpu/run measures
# both and takes its own.
H200 = {"flops_per_second": 790e12, "bytes_per_second": 4.0e12}

PHASES = ("forward", "data_gradient", "weight_gradient", "norm_and_neuron", "their_backward", "update")


@dataclass
class Row:
    """One phase of one layer. `per_image` and `per_batch` are bytes of a whole batch of T time steps."""

    layer: str
    phase: str
    kind: str
    flops: float = 0.0  # per image
    per_image: float = 0.0
    per_batch: float = 0.0

    def seconds(self, batch, ceilings):
        """The larger of two times, of one batch."""
        moved = (batch * self.per_image + self.per_batch) / ceilings["bytes_per_second"]
        return max(moved, batch * self.flops / ceilings["flops_per_second"])


class Network:
    """Rows of a network, in the order of its layers."""

    def __init__(self, num_time_steps, window):
        self.forward = num_time_steps
        self.backward = sum(min(t + 1, window) for t in range(num_time_steps))
        self.rows = []
        self.shapes = {}  # of convolutions, by layer
        self.parameters = 0
        self.macs = 0

    def add(self, *arguments, **numbers):
        self.rows.append(Row(*arguments, **numbers))

    def conv(self, name, channels, sides, kernel, dx="written", bias=False):
        """`dx`: None, if nobody needs it; "written"; "added" to what is there in bf16; "added_f32", which
        goes through memory once more, because cuDNN adds to nothing but its own type."""
        (c_in, c_out), (s_in, s_out) = channels, sides
        e_in, e_out = c_in * s_in**2, c_out * s_out**2
        weights = c_in * c_out * kernel**2
        macs = weights * s_out**2
        f, b = self.forward, self.backward
        self.macs += macs
        self.shapes[name] = f"{kernel}x{kernel}, {c_in}@{s_in} to {c_out}@{s_out}"
        self.trained(name, weights + (c_out if bias else 0))
        self.add(name, "forward", "convolutions, forward", 2.0 * macs * f, 2 * f * (e_in + e_out), 2 * f * weights)
        if dx is not None:
            to = {"written": 2, "added": 4, "added_f32": 2 + 2 + 8}[dx]
            self.add(name, "data_gradient", "convolutions, data gradient",
                     2.0 * macs * b, b * (2 * e_out + to * e_in), 2 * f * weights)
        # In bf16 by cuDNN, then as f32 into the arena.
        self.add(name, "weight_gradient", "convolutions, weight gradient",
                 2.0 * macs * b, 2 * b * (e_in + e_out), 8 * f * weights)

    def trained(self, name, parameters):
        self.parameters += parameters
        # Weights, gradients and velocities read, weights and velocities written, and the weights as bf16.
        self.add(name, "update", "updates", per_batch=22 * self.forward * parameters)

    def norm(self, name, channels, side, lif=True, before=False, y=False, after=False, out_error=2,
             newest_only=False):
        """Batch norm with what is fused to it. `out_error`: bytes of a number of the error at the spikes."""
        e = channels * side**2
        f, b = self.forward, self.backward
        self.trained(name, 2 * channels)
        self.add(name, "norm_and_neuron", "norm statistics", per_image=2 * f * e)
        passed = 2 + 4 * before + 4 * y + (4 + 2 + 2 * after if lif else 0)
        self.add(name, "norm_and_neuron", "norm and neurons, forward",
                 per_image=f * passed * e + (4 * (f - 1) * e if lif else 0))
        arrives = (f if newest_only else b) if lif else 0
        read = b * (2 + (4 if lif else 0) + 4 * y) * e + arrives * out_error * e
        self.add(name, "their_backward", "backward, pass 1 (sums)", per_image=read)
        written = b * (2 + 4 * before) * e + arrives * 4 * after * e
        self.add(name, "their_backward", "backward, pass 2 (errors)", per_image=read + written)

    def pool(self, name, channels, sides, steps, maximum):
        e_in, e_out = channels * sides[0] ** 2, channels * sides[1] ** 2
        f = self.forward
        arg = 4 if maximum else 0
        self.add(name, "forward", "pools", per_image=f * (2 * e_in + (2 + arg) * e_out))
        self.add(name, "data_gradient", "pools", per_image=steps * (4 * e_in + (4 + arg) * e_out))


def ms_resnet18(side=32, classes=10, num_time_steps=6, window=2):
    """Neurons before convolutions, a real-valued stream that is added to."""
    net = Network(num_time_steps, window)
    net.conv("stem.conv", (3, 64), (side, side), 3, dx=None)
    blocks = [(width, j) for width in (64, 128, 256, 512) for j in range(2)]
    names = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    first = [f"{name}.sn1" for name in names] + ["head.sn"]
    # The stream is kept where the next block adds to it as it is, not where it goes through a convolution.
    net.norm(f"stem.bn + {first[0]}", 64, side, y=True)
    c_in = 64
    for index, ((width, j), name) in enumerate(zip(blocks, names)):
        strided = width != 64 and j == 0
        inner = side // 2 if strided else side
        if strided:
            net.conv(f"{name}.down.conv", (c_in, width), (side, inner), 1, dx="added")
            net.norm(f"{name}.down.bn", width, inner, lif=False, y=True)
        net.conv(f"{name}.conv1", (c_in, width), (side, inner), 3)
        net.norm(f"{name}.bn1 + {name}.sn2", width, inner)
        net.conv(f"{name}.conv2", (width, width), (inner, inner), 3)
        last = index + 1 == len(blocks)
        goes_on = not last and blocks[index + 1][1] == 1
        net.norm(f"{name}.bn2 + {name}.add + {first[index + 1]}", width, inner, before=True, y=goes_on,
                 out_error=4 if last else 2, newest_only=last)
        side, c_in = inner, width
    net.pool("head.pool", c_in, (side, 1), num_time_steps, maximum=False)
    net.conv("fc", (c_in, classes), (1, 1), 1, bias=True)
    return net


def sew_resnet34(side=224, classes=1000, num_time_steps=6, window=2):
    """A neuron closes each branch, spikes are added."""
    net = Network(num_time_steps, window)
    net.conv("stem.conv", (3, 64), (side, side // 2), 7, dx=None)
    net.norm("stem.bn + stem.sn", 64, side // 2, out_error=4)
    net.pool("stem.pool", 64, (side // 2, side // 4), net.backward, maximum=True)
    side, c_in = side // 4, 64
    blocks = [(width, j) for width, n in ((64, 3), (128, 4), (256, 6), (512, 3)) for j in range(n)]
    numbers = {64: 1, 128: 2, 256: 3, 512: 4}
    for index, (width, j) in enumerate(blocks):
        name = f"layer{numbers[width]}.{j}"
        strided = width != 64 and j == 0
        inner = side // 2 if strided else side
        last = index + 1 == len(blocks)
        # The error of a block's sum: f32 where a shortcut, or the last pool, hands it down first.
        error = 2 if not last and blocks[index + 1][1] == 0 else 4
        net.conv(f"{name}.conv1", (c_in, width), (side, inner), 3, dx="added" if strided else "added_f32")
        net.norm(f"{name}.bn1 + {name}.sn1", width, inner)
        net.conv(f"{name}.conv2", (width, width), (inner, inner), 3)
        if strided:
            net.norm(f"{name}.bn2 + {name}.sn2", width, inner, out_error=4)
            net.conv(f"{name}.down.conv", (c_in, width), (side, inner), 1)
            net.norm(f"{name}.down.bn + {name}.down.sn + {name}.add", width, inner, after=True, out_error=error)
        else:
            net.norm(f"{name}.bn2 + {name}.sn2 + {name}.add", width, inner, after=True, out_error=error,
                     newest_only=last)
        side, c_in = inner, width
    net.pool("head.pool", c_in, (side, 1), num_time_steps, maximum=False)
    net.conv("fc", (c_in, classes), (1, 1), 1, bias=True)
    return net


NETWORKS = {"ms_resnet18": ms_resnet18, "sew_resnet34": sew_resnet34}


def grouped(rows, key):
    """Rows by what `key` says of them, in order of their first."""
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def bound(net, batch, ceilings):
    """Seconds of a batch: no phase of a layer overlaps another, and each is as fast as can be."""
    return sum(row.seconds(batch, ceilings) for row in net.rows)


def table(net, batch, ceilings):
    """Markdown: kinds of work with operations, bytes and times per image and time step."""
    lines = ["| work | MFLOP | MB | us at the matrix rate | us at the bandwidth | us, the larger by layer | share |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    whole = bound(net, batch, ceilings)
    scale = batch * net.forward
    sums = [0.0] * 5

    def line(name, numbers, digits=2):
        flops, moved, of_flops, of_bytes, seconds = numbers
        lines.append(f"| {name} | {flops / 1e6:.1f} | {moved / 1e6:.3f} | {1e6 * of_flops:.3f} | {1e6 * of_bytes:.3f} "
                     f"| {1e6 * seconds:.3f} | {100 * seconds * scale / whole:.1f} % |")

    for kind, rows in grouped(net.rows, lambda row: row.kind).items():
        flops = sum(row.flops for row in rows) / net.forward
        moved = sum(row.per_image + row.per_batch / batch for row in rows) / net.forward
        numbers = [flops, moved, flops / ceilings["flops_per_second"], moved / ceilings["bytes_per_second"],
                   sum(row.seconds(batch, ceilings) for row in rows) / scale]
        sums = [a + b for a, b in zip(sums, numbers)]
        line(kind, numbers)
    line("all", sums)
    return "\n".join(lines)
