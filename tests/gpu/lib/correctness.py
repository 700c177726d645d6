"""Part 1: whether it computes what it should."""

import json
import os
import re
from fnmatch import fnmatch

from .place import digest
from .progress import Item, cut, passed

VERIFIED = re.compile(r"^(\d+) of (\d+) within tolerance, (\d+) beyond, (\d+) not built$", re.M)
TESTED = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed", re.M)
FAILED = re.compile(r"^test (\S+) \.\.\. FAILED$", re.M)
# An option that a version of compute-sanitizer does not know, or wants in another form.
UNKNOWN = re.compile(r"(unrecogni[sz]ed|unknown) (command[- ]line )?(option|argument)|option '?--kernel-name", re.I)
# How what is computed by cuDNN's graph API is called, and the argument that asks for it.
GRAPH_API = "graph API"
BY_GRAPH_API = ["--convolutions", "graph"]
# Bytes that a driver may take for itself over 2,000 time steps; and with 64 of them in a batch, not 4.
MAX_DRIFT = 64 << 20
MAX_DRIFT_BY_T = 8 << 20


def items(place, sizes):
    """Everything that is checked, the cheapest that shows most first."""
    found = [
        Item("doctor", "correctness", 60, 5, lambda s, t: doctor(s, t, place)),
        Item("libraries found by itself", "correctness", 60, 5, lambda s, t: by_itself(s, t, place)),
        Item("traces in f32", "correctness", 150, 20, lambda s, t: traces(s, t, place, sizes)),
    ]
    found.append(Item(f"traces in f32, {GRAPH_API}", "correctness", 90, 15,
                      lambda s, t: graph_traces(s, t, place, sizes)))
    # What is asked of it comes before the suites: one that is cut off keeps nothing.
    found.append(Item("memory flat over T", "correctness", 90, 20, lambda s, t: flat(s, t, place, sizes)))
    found.append(Item("leak soak", "correctness", 90, 20, lambda s, t: soak(s, t, place, sizes)))
    for precision in ("f32", "bf16"):
        found.append(Item(f"deterministic twice, {precision}", "correctness", 60, 15,
                          lambda s, t, precision=precision: twice(s, t, place, sizes, precision)))
    found.append(Item(f"deterministic twice, bf16, {GRAPH_API}", "correctness", 60, 15,
                      lambda s, t: twice(s, t, place, sizes, "bf16", ["run.convolutions=graph"])))
    for name, filters in sizes.tests.items():
        found.append(suite(place, name, ["--ignored", *filters], {}))
    for name in sizes.suites:
        if place.test(name):
            found.append(suite(place, name, [], {"SYNFIRE_TEST_CUDA": "1"}))
    for tool in ("memcheck", "racecheck"):
        found.append(Item(f"compute-sanitizer {tool}", "correctness", 75, 30,
                          lambda s, t, tool=tool: sanitizer(s, t, place, sizes, tool)))
    return found


def doctor(attempt, limit, place):
    said = attempt.run([place.synfire, "doctor", "--device", "cuda"], limit, place.environment)
    why = "" if said.code == 0 else said.out[-3000:] + said.err[-1000:]
    return passed(said.code == 0, why=why, said=said.out)


def by_itself(attempt, limit, place):
    """A trace without the folders that this script adds for libraries that look for each other."""
    environment = {**place.environment, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    trace = place.path("golden", "ms.stol_k2_saved.safetensors")
    command = [place.synfire, "verify", "--device", "cuda", trace]
    said = attempt.run(command, limit, environment)
    return passed(said.code == 0, command=shown(place, command), why="" if said.code == 0 else said.last())


def shown(place, command):
    """A command as somebody else would give it."""
    words = [str(word).replace(str(place.root), "BUNDLE").replace(str(place.work), "WORK") for word in command]
    return " ".join(words)


def traces(attempt, limit, place, sizes):
    """Every trace whose algorithm is built, in f32."""
    return verify(attempt, limit, place, ("golden", "traces"), sizes.traces, [])


def graph_traces(attempt, limit, place, sizes):
    """Those of tests/golden again: they are the short ones."""
    return verify(attempt, limit, place, ("golden",), sizes.graph_traces, BY_GRAPH_API)


def verify(attempt, limit, place, folders, patterns, more):
    wanted = []
    for folder in folders:
        for path in sorted(place.path(folder).glob("*.safetensors")):
            net, kind = path.name.split(".")[0], path.name.split(".")[1]
            if kind == "common" or net == "ops":
                continue
            if any(fnmatch(path.name, pattern) for pattern in patterns):
                wanted.append(path)
    ops = place.path("golden", "ops.safetensors")
    command = [place.synfire, "verify", "--device", "cuda", *more, *wanted, "--ops", ops]
    said = attempt.run(command, limit, place.environment)
    if said.timed_out:
        return cut(said, why=f"{len(wanted)} traces take longer than {limit:.0f} s")
    match = VERIFIED.search(said.out)
    if match is None:
        return passed(False, why=said.last())
    good, of, beyond, not_built = (int(number) for number in match.groups())
    why = "" if beyond == 0 else said.out[-4000:]
    return passed(said.code in (0, 2) and beyond == 0 and good > 0, good=good, of=of, beyond=beyond,
                  not_built=not_built, command=shown(place, command[:4 + len(more)]) + " ... --ops ops.safetensors",
                  why=why)


def suite(place, name, arguments, variables):
    """One of the packed suites of tests."""
    path = place.test(name)

    def do(attempt, limit):
        if path is None:
            return {"status": "not here", "why": "the bundle was packed without this suite"}
        command = [path, "--test-threads", "4", *arguments]
        said = attempt.run(command, limit, {**place.environment, **variables}, folder=place.work)
        if said.timed_out:
            done = len(re.findall(r"^test \S+ \.\.\. ok$", said.out, re.M))
            return cut(said, why=f"{done} tests had passed after {said.seconds:.0f} s")
        match = TESTED.search(said.out)
        good, bad = (int(number) for number in match.groups()) if match else (0, 0)
        failed = FAILED.findall(said.out)
        why = "" if said.code == 0 and good else f"{failed}\n{said.out[-6000:]}\n{said.last(3)}"
        return passed(said.code == 0 and good > 0, good=good, failed=failed, command=shown(place, command), why=why)

    return Item(f"tests: {name}", "correctness", 120, 15, do)


def train_command(place, sizes, precision, batches, weights, more=()):
    command = [place.synfire, "train", place.path("configs", "ms_resnet18-cifar10.toml"), "--device", sizes.device]
    settings = ["data.path=" + str(place.path("data")), f"run.precision={precision}", f"run.max_batches={batches}",
                *sizes.training, *more, "run.epochs=1000"]
    for setting in settings:
        command += ["--set", setting]
    return [*command, "--save-weights", weights]


def twice(attempt, limit, place, sizes, precision, more=()):
    """The same training twice, and the bits of all weights."""
    sums = []
    for number in (1, 2):
        weights = place.work / f"twice-{number}.safetensors"
        command = train_command(place, sizes, precision, sizes.twice, weights, more)
        said = attempt.run(command, limit / 2, place.environment)
        if said.timed_out:
            return cut(said)
        if said.code != 0:
            return passed(False, why=said.last())
        sums.append(digest(weights))
    return passed(sums[0] == sums[1], sha256=sums, batches=sizes.twice, command=shown(place, command),
                  why="" if sums[0] == sums[1] else "the weights of two runs with one seed differ")


def bench(attempt, limit, place, sizes, model, batch, more):
    """A `synfire bench` and its JSON."""
    command = [place.synfire, "bench", "--model", model, "--batch", batch, "--device", sizes.device,
               "--precision", sizes.precision, *sizes.model, *more, "--json"]
    said = attempt.run(command, limit, place.environment)
    try:
        figures = json.loads(said.out) if said.code == 0 else None
    except ValueError:
        figures = None
    return shown(place, command), said, figures


def flat(attempt, limit, place, sizes):
    """Bytes held on the device by the number of time steps, graphs, and bytes that the driver has left: neither STOL's
    window nor what is taken for graphs grows with T."""
    held, peak, free, graphs = {}, {}, {}, {}
    # The driver's free memory is that of all programs.
    with attempt.alone():
        for num_time_steps in sizes.flat:
            more = ["--time-steps", num_time_steps, "--iterations", 1, "--warmup", 2]
            command, said, figures = bench(attempt, limit / len(sizes.flat), place, sizes, "ms_resnet18",
                                           sizes.memory_batch, more)
            if said.timed_out:
                return cut(said)
            if figures is None:
                return passed(False, command=command, why=said.last())
            memory = figures["device_memory"]["at_end"]
            held[num_time_steps], peak[num_time_steps] = memory["held_bytes"], memory["peak_bytes"]
            free[num_time_steps], graphs[num_time_steps] = memory["free_bytes"], memory["graphs"]
    grown, why = max(peak.values()) / min(peak.values()), []
    if grown >= 1.01:
        why.append(f"the most memory is {grown:.3f} times the least")
    if len(set(graphs.values())) > 1 or 0 in graphs.values():
        why.append(f"graphs by T: {graphs}")
    if None in free.values():
        why.append("the driver does not say what is left")
    elif (drift := max(free.values()) - min(free.values())) > MAX_DRIFT_BY_T:
        why.append(f"{drift} bytes less are left with one T than with another")
    return passed(not why, held_bytes=held, peak_bytes=peak, free_bytes=free, graphs=graphs, command=command,
                  why="; ".join(why))


def soak(attempt, limit, place, sizes):
    """Bytes held after the warm-up and after so many time steps more."""
    more = ["--time-steps", 6, "--iterations", sizes.soak, "--keep-input"]
    # The driver's free memory is that of all programs.
    with attempt.alone():
        command, said, figures = bench(attempt, limit, place, sizes, "ms_resnet18", sizes.soak_batch, more)
    if said.timed_out:
        return cut(said)
    if figures is None:
        return passed(False, command=command, why=said.last())
    before, after = figures["device_memory"]["after_warmup"], figures["device_memory"]["at_end"]
    same = all(before[key] == after[key] for key in ("held_bytes", "peak_bytes"))
    drift = (before["free_bytes"] or 0) - (after["free_bytes"] or 0)
    ok = same and drift <= MAX_DRIFT
    return passed(ok, before=before, after=after, time_steps=6 * sizes.soak, drift_bytes=drift, command=command,
                  why="" if ok else f"{before} became {after}")


def sanitizer(attempt, limit, place, sizes, tool):
    """NVIDIA's checker, where it is and runs, on the smallest that goes through all kernels."""
    doctor_said = attempt.run([place.synfire, "doctor", "--json"], 30, place.environment)
    try:
        tools = json.loads(doctor_said.out)["tools"]
    except (ValueError, KeyError):
        tools = []
    path = next((entry["path"] for entry in tools if entry["name"] == "compute-sanitizer"), None)
    if path is None:
        return {"status": "not here", "why": "compute-sanitizer was not found"}
    only = []
    if tool == "memcheck":
        # Kernels are looked for in all modules, and some questions are asked to be refused: these are no errors.
        only = ["--report-api-errors", "no"]
        what = ["verify", "--device", "cuda", place.path("golden", "ms.stol_k2_saved.safetensors"),
                "--ops", place.path("golden", "ops.safetensors")]
    else:
        # Races are those of a block's own memory. cuDNN's kernels have more of it than ours, and would take the time.
        for kernel in place.manifest["block_kernels"]:
            only += ["--kernel-name", f"kne={kernel}"]
        what = ["bench", "--model", "small", "--input", "3x16x16", "--width", "0.25", "--batch", 4, "--device", "cuda",
                "--precision", sizes.precision, "--time-steps", 2, "--warmup", 2, "--iterations", 1]
    command = [path, "--tool", tool, "--error-exitcode", 9, *only, place.synfire, *what]
    said = attempt.run(command, limit, place.environment)
    words = said.out + said.err
    if said.timed_out:
        return cut(said, why=f"not over after {said.seconds:.0f} s")
    # It ends with a summary, unless it did not begin.
    if said.code != 0 and "SUMMARY" not in words and UNKNOWN.search(words):
        return {"status": "skipped", "why": "this compute-sanitizer has other options: " + said.last(3)}
    if "Device not supported" in words or "Unable to" in words and said.code not in (0, 9):
        return {"status": "not here", "why": "compute-sanitizer does not run on this machine: " + said.last(3)}
    return passed(said.code == 0, command=shown(place, command), why="" if said.code == 0 else words[-6000:])
