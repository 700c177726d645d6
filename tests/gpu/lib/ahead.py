"""Rivals that compile, begun while correctness is looked at: what their compilers made lies in a folder afterwards.

Nothing may be timed beside them: they are waited for, or ended, before."""

import time

from .rivals import COMPILED, LIMITS, could_not, is_compiled, mark_compiled, rival_command
from .progress import DONE

# Seconds that they have from their start, and the share of what is left for the rivals that is waited at most.
LIMIT = LIMITS[COMPILED][0]
SHARE = 0.6


def begin(attempt, place, sizes):
    """Starts a process for each of the sizes that matter most, where it is still to be timed; says which."""
    begun = {}
    if could_not(place) is not None or COMPILED not in (*sizes.first, *sizes.then):
        return begun
    for size in sizes.rivals[:2]:
        model, batch = size[:2]
        names = [f"{model} {batch}: {COMPILED}, round {number + 1}" for number in range(sizes.rounds)]
        done = all(attempt.results["items"].get(name, {}).get("status") in DONE for name in names)
        if done or is_compiled(place, size):
            continue
        command, environment = rival_command(place, sizes, size, COMPILED, 2, 1)
        name = f"{model} {batch}: {COMPILED}, compiled ahead"
        child = attempt.start_beside(name, command, environment, place.work / f"ahead-{model}-{batch}.txt")
        if child is not None:
            begun[name] = (size, child)
    return begun


def wait(attempt, place, begun, until):
    """Waits for them, and ends those that take too long. `until`: seconds of the run at which the rivals' part ends."""
    if not begun:
        return
    began = time.monotonic()
    now = attempt.passed()
    last = min(attempt.beside_began + LIMIT, now + SHARE * max(0.0, min(until - now, attempt.left())))
    attempt.wait_beside(last)
    for name, (size, child) in begun.items():
        if child.returncode == 0:
            mark_compiled(place, size)
        how = {0: "done", None: "does not end", -9: "ended: it took too long"}.get(child.returncode,
                                                                              f"failed with {child.returncode}")
        attempt.results.setdefault("compiled_ahead", {})[name] = how
        attempt.say(f"{name}: {how}, waited for {time.monotonic() - began:.0f} s")
    attempt.save()
