"""Part 2: how fast, beside PyTorch on the same machine in the same minutes, and beside what is possible."""

import json

from .correctness import BY_GRAPH_API, GRAPH_API, bench, shown
from .progress import Item, cut

COMPILED = "saved_compiled"
PROFILE = "by layer and phase"
# Every engine that is ever timed; which are, and in which order, `sizes` says.
ENGINES = ("authors", COMPILED, "saved", "bptt")
# What makes us fast and can be left out, as `synfire bench --without` names it.
SAVINGS = ("graphs", "windows", "updates")
WHOLE = "synfire, nothing left out"
# Seconds at most and at least of an engine, else DEFAULT. Compiling takes minutes, once per size and machine.
LIMITS = {COMPILED: (240, 150)}
DEFAULT = (90, 20)

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
    """Round after round, ours before each rival; in the first round what matters most of all sizes comes first, and
    what compiles after what does not: it may take all of the time."""
    found = [Item("ceilings", "rivals", 60, 15, lambda s, t: ceilings(s, t, place, sizes))]
    for model, batch, warmup, timed in sizes.rivals[:2]:
        found += interfaces(place, sizes, (model, batch, warmup, timed))
    for number in range(1, sizes.rounds + 1):
        one_by_one = [(engine,) for engine in sizes.first]
        for engines in (*one_by_one, sizes.then) if number == 1 else ((*sizes.first, *sizes.then),):
            for size in sizes.rivals:
                for engine in engines:
                    found += pair(place, sizes, size, engine, number)
        if number == min(2, sizes.rounds):
            for index in sizes.left_out:
                found += left_out(place, sizes, sizes.rivals[index])
    for model, batch, warmup, timed in sizes.rivals[:2]:
        found.append(Item(f"{model} {batch}: synfire, pictures copied with every batch", "rivals", 60, 15,
                          lambda s, t, c=(model, batch, warmup, timed): ours(s, t, place, sizes, c, [])))
    return found


def interfaces(place, sizes, size):
    """A network by both interfaces of cuDNN, one right after the other, by layer and phase; and by its graph API as a
    whole: by its legacy calls that is timed before every rival."""
    name = f"{size[0]} {size[1]}"
    return [
        Item(f"{name}: {PROFILE}", "rivals", 60, 15, lambda s, t: profile(s, t, place, sizes, size, [])),
        Item(f"{name}: {PROFILE}, {GRAPH_API}", "rivals", 60, 15,
             lambda s, t: profile(s, t, place, sizes, size, BY_GRAPH_API)),
        Item(f"{name}: synfire, {GRAPH_API}", "rivals", 60, 12,
             lambda s, t: ours(s, t, place, sizes, size, ["--keep-input", *BY_GRAPH_API])),
    ]


def left_out(place, sizes, size):
    """All that makes us fast, and then all but one, one after the other."""
    name = f"{size[0]} {size[1]}"
    found = []
    for named, more in ((WHOLE, []), *((f"synfire without {saving}", ["--without", saving]) for saving in SAVINGS)):
        found.append(Item(f"{name}: {named}", "rivals", 60, 12,
                          lambda s, t, more=more: ours(s, t, place, sizes, size, ["--keep-input", *more])))
    return found


def pair(place, sizes, size, engine, number):
    """Ours, then a rival."""
    model, batch = size[:2]
    name = f"{model} {batch}: {{}}, round {number}"
    limit, least = LIMITS.get(engine, DEFAULT)
    return [
        Item(name.format(f"synfire before {engine}"), "rivals", 60, 12,
             lambda s, t: ours(s, t, place, sizes, size, ["--keep-input"])),
        Item(name.format(engine), "rivals", limit,
             lambda: DEFAULT[1] if engine == COMPILED and is_compiled(place, size) else least,
             lambda s, t: rival(s, t, place, sizes, size, engine)),
    ]


def ceilings(attempt, limit, place, sizes):
    """The rates that a roofline is drawn with: a matrix product and a copy, on random numbers."""
    if place.torch is None:
        return {"status": "not here", "why": f"{place.python} has no torch"}
    command = [place.python, "-c", MEASURE, sizes.matrix, sizes.copy_gib, sizes.rival_device]
    said = attempt.run(command, limit, environment_of_torch(place, sizes))
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
                "seconds_by_work", "profiled_seconds_per_batch", "convolutions", "without"):
        if figures.get(key) is not None:
            result[key] = figures[key]
    if "not replayed as graphs" in said.err:
        result["warning"] = said.last(2)
    if not figures.get("loss_is_finite", True):
        result.update(status="failed", why="the loss is not finite")
    return result


def ours(attempt, limit, place, sizes, size, more):
    model, batch, warmup, timed = size
    return figures_of(*bench(attempt, limit, place, sizes, model, batch, [*times(sizes, warmup, timed), *more]))


def profile(attempt, limit, place, sizes, size, more):
    """Graphs off, and waited for after each layer: for shares, not for sums."""
    model, batch, warmup, timed = size
    more = [*times(sizes, warmup, min(timed, 5)), "--keep-input", "--profile", *more]
    return figures_of(*bench(attempt, limit, place, sizes, model, batch, more))


def identity(place, sizes, machine):
    """What the rates of rivals and machine depend on, if all of it is known: no part of it is ours."""
    files = {entry["path"]: entry["sha256"] for entry in place.manifest["files"]}
    script = files.get("bench/stol_torch.py")
    gpus = [gpu.get("name") for gpu in (machine["doctor"] or {}).get("gpus") or []]
    if not gpus or script is None or place.torch is None:
        return None
    return {"script_sha256": script, "torch": place.torch, "gpus": gpus, "device": sizes.rival_device,
            "precision": sizes.rival_precision, "time_steps": sizes.num_time_steps,
            "sizes": [list(size) for size in sizes.rivals], "ceilings": [sizes.matrix, sizes.copy_gib, MEASURE]}


def is_of_others(name):
    """Whether an item measures nothing of ours."""
    return name == "ceilings" or any(f": {engine}, round " in name for engine in ENGINES)


def could_not(place):
    """Why there are no rivals, if so."""
    if place.torch is None:
        return f"{place.python} has no torch"
    if not place.path("bench", "stol_torch.py").exists():
        return "the bundle was packed without SYNFIRE_SHARED: it has no rivals"
    return None


def compiled(place, size):
    """The file that says that the compilers' folders have what this size needs."""
    return place.work / f"compiled-{size[0]}-{size[1]}-torch-{place.torch}"


def is_compiled(place, size):
    return compiled(place, size).exists()


def mark_compiled(place, size):
    compiled(place, size).touch()


def rival_command(place, sizes, size, engine, warmup, timed):
    """What runs a rival, and its environment, in which all of them share what their compilers make."""
    model, batch = size[:2]
    if sizes.rival_device == "cpu":
        model = "small"
    command = [place.python, place.path("bench", "stol_torch.py"), "--engine", engine, "--model", model,
               "--batch", batch, "--steps-T", sizes.num_time_steps, "--dtype", sizes.rival_precision,
               "--device", sizes.rival_device, "--warmup", warmup, "--iterations", timed]
    environment = environment_of_torch(place, sizes)
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(place.work / "inductor"),
                   "TRITON_CACHE_DIR": str(place.work / "triton")}
    return command, environment


def rival(attempt, limit, place, sizes, size, engine):
    if (why := could_not(place)) is not None:
        return {"status": "not here", "why": why}
    command, environment = rival_command(place, sizes, size, engine, *size[2:])
    said = attempt.run(command, limit, environment)
    try:
        figures = json.loads(said.out.splitlines()[-1]) if said.code == 0 else None
    except (ValueError, IndexError):
        figures = None
    result = figures_of(shown(place, command), said, figures)
    if engine == COMPILED and result["status"] == "measured":
        mark_compiled(place, size)
    if "out of memory" in said.err.lower():
        # That is an answer, too.
        result.update(status="measured", why="out of memory")
    return result
