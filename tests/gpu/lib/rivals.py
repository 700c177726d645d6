"""Part 2: how fast, beside PyTorch on the same machine in the same minutes, and beside what is possible."""

import json

from .correctness import bench, shown
from .session import Item, cut

# Compiling takes minutes, once per machine.
LIMITS = {"saved_compiled": (240, 60)}

MEASURE = """
import json, sys, time, torch
n, gib, device = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
def timed(call, times):
    for _ in range(3): call()
    if device == 'cuda':
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times): call()
        end.record(); torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / times
    begin = time.perf_counter()
    for _ in range(times): call()
    return (time.perf_counter() - begin) / times
a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
b = torch.randn(n, n, device=device, dtype=torch.bfloat16)
out = torch.empty(n, n, device=device, dtype=torch.bfloat16)
flops = sorted(2 * n**3 / timed(lambda: torch.mm(a, b, out=out), 10) for _ in range(5))
count = int(gib * 2**30) // 4
x, y = torch.randn(count, device=device), torch.empty(count, device=device)
rates = sorted(2 * 4 * count / timed(lambda: y.copy_(x), 10) for _ in range(5))
print(json.dumps({'flops_per_second': flops[2], 'bytes_per_second': rates[2]}))
"""


def items(place, sizes):
    """Round after round, ours before each rival; in the first round what matters most of all sizes comes first."""
    found = [Item("ceilings", "rivals", 60, 15, lambda s, t: ceilings(s, t, place, sizes))]
    for model, batch, warmup, timed in sizes.rivals[:2]:
        found.append(Item(f"{model} {batch}: by layer and phase", "rivals", 60, 15,
                          lambda s, t, c=(model, batch, warmup, timed): profile(s, t, place, sizes, c)))
    for number in range(1, sizes.rounds + 1):
        for engines in (sizes.first, sizes.then) if number == 1 else ((*sizes.first, *sizes.then),):
            for size in sizes.rivals:
                for engine in engines:
                    found += pair(place, sizes, size, engine, number)
    for model, batch, warmup, timed in sizes.rivals[:2]:
        found.append(Item(f"{model} {batch}: synfire, pictures copied with every batch", "rivals", 60, 15,
                          lambda s, t, c=(model, batch, warmup, timed): ours(s, t, place, sizes, c, [])))
    return found


def pair(place, sizes, size, engine, number):
    """Ours, then a rival."""
    model, batch = size[:2]
    name = f"{model} {batch}: {{}}, round {number}"
    limit, least = LIMITS.get(engine, (90, 20))
    return [
        Item(name.format(f"synfire before {engine}"), "rivals", 60, 12,
             lambda s, t: ours(s, t, place, sizes, size, ["--keep-input"])),
        Item(name.format(engine), "rivals", limit, least, lambda s, t: rival(s, t, place, sizes, size, engine)),
    ]


def ceilings(session, limit, place, sizes):
    """The rates that a roofline is drawn with: a matrix product and a copy, on random numbers."""
    if place.torch is None:
        return {"status": "not here", "why": f"{place.python} has no torch"}
    command = [place.python, "-c", MEASURE, sizes.matrix, sizes.copy_gib, sizes.rival_device]
    said = session.run(command, limit, environment_of_torch(place, sizes))
    if said.timed_out:
        return cut(said)
    if said.code != 0:
        return {"status": "failed", "why": said.last()}
    rates = json.loads(said.out)
    return {"status": "measured", **rates, "device": sizes.rival_device, "is": f"median of 5: bf16 product of {sizes.matrix} cubed; copy of "
                                                 f"{sizes.copy_gib} GiB, bytes read and written"}


def environment_of_torch(place, sizes):
    """What PyTorch is told: nothing of ours. On processors it must not meet the stand-ins, which lack what it
    asks a driver for."""
    environment = dict(place.plain)
    if sizes.rival_device == "cpu":
        environment.pop("LD_LIBRARY_PATH", None)
    return environment


def times(sizes, warmup, timed):
    return ["--time-steps", sizes.num_time_steps, "--warmup", warmup, "--iterations", timed]


def figures_of(command, said, figures):
    """What is kept of a program's figures."""
    if said.timed_out:
        return cut(said, command=command)
    if figures is None:
        return {"status": "failed", "command": command, "why": said.last()}
    result = {"status": "measured", "command": command, "median_of": figures["iterations"]}
    for key in ("images_per_second", "seconds_per_batch", "peak_memory_mib", "dtype", "device_name", "loss",
                "loss_is_finite", "torch", "channels_last", "warmup_seconds", "firing_rate", "input", "profile",
                "seconds_by_work", "profiled_seconds_per_batch"):
        if figures.get(key) is not None:
            result[key] = figures[key]
    if "not replayed as graphs" in said.err:
        result["warning"] = said.last(2)
    if not figures.get("loss_is_finite", True):
        result.update(status="failed", why="the loss is not finite")
    return result


def ours(session, limit, place, sizes, size, more):
    model, batch, warmup, timed = size
    return figures_of(*bench(session, limit, place, sizes, model, batch, [*times(sizes, warmup, timed), *more]))


def profile(session, limit, place, sizes, size):
    """Graphs off, and waited for after each layer: for shares, not for sums."""
    model, batch, warmup, timed = size
    more = [*times(sizes, warmup, min(timed, 5)), "--keep-input", "--profile"]
    return figures_of(*bench(session, limit, place, sizes, model, batch, more))


def rival(session, limit, place, sizes, size, engine):
    if place.torch is None:
        return {"status": "not here", "why": f"{place.python} has no torch"}
    script = place.path("bench", "stol_torch.py")
    if not script.exists():
        return {"status": "not here", "why": "the bundle was packed without SYNFIRE_SHARED: it has no rivals"}
    model, batch, warmup, timed = size
    if sizes.rival_device == "cpu":
        model = "small"
    command = [place.python, script, "--engine", engine, "--model", model, "--batch", batch, "--steps-T",
               sizes.num_time_steps, "--dtype", sizes.rival_precision, "--device", sizes.rival_device, "--warmup",
               warmup, "--iterations", timed]
    environment = environment_of_torch(place, sizes)
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(place.work / "inductor"),
                   "TRITON_CACHE_DIR": str(place.work / "triton")}
    said = session.run(command, limit, environment)
    try:
        figures = json.loads(said.out.splitlines()[-1]) if said.code == 0 else None
    except (ValueError, IndexError):
        figures = None
    result = figures_of(shown(place, command), said, figures)
    if "out of memory" in said.err.lower():
        # That is an answer, too.
        result.update(status="measured", why="out of memory")
    return result
