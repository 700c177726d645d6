"""What has been measured so far, and how much time is left.

Everything that is found out lies in one file, `results.json` in OUT, which is written anew after each item: whatever
ends the run, nothing that was measured is lost, and the next run goes on with what is missing.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass

# More of what a program says is not kept.
MAX_SAID = 20_000
# Seconds for the table, at the end.
RESERVE = 4.0
# Seconds for a program that is asked to end and to save what it has.
TO_SAVE = 12
# Seconds for a program that was killed.
TO_DIE = 10
# How an item can end. What is done is not run again; everything else is, and only "not here", what this machine or
# bundle lacks, and "skipped", what a tool of this version cannot do, are no shortcomings.
DONE = ("passed", "measured")
GOOD = (*DONE, "not here", "skipped")


@dataclass
class Said:
    """How a program ended, and its words."""

    code: int
    out: str
    err: str
    seconds: float
    timed_out: bool

    def last(self, lines=12):
        """The end of its words, for people."""
        words = self.err.strip() or self.out.strip()
        if self.code < 0:
            words = f"{words}\nended by signal {-self.code}"
        return "\n".join(words.splitlines()[-lines:])[-2000:]


class Stopped(Exception):
    """A signal asked for the end."""


class Attempt:
    """One run of the script."""

    def __init__(self, out, seconds, revision, previous=None, began=None):
        self.began = time.monotonic() if began is None else began
        self.seconds = seconds
        self.out = out
        self.child = None
        self.beside = []
        self.beside_began = 0.0
        self.ended_by = None
        self.other = {"items": {}}
        self.path = out / "results.json"
        self.log = open(out / "log.txt", "a", encoding="utf-8")
        self.results = {"bundle": revision, "runs": 0, "items": {}}
        self.take_over(previous or self.path, revision)
        self.results["runs"] += 1
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self.stop)

    def take_over(self, path, revision):
        """What earlier runs of the same bundle found."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        try:
            results = json.loads(text)
            items = results["items"]
            same = results["bundle"] == revision
        except (ValueError, KeyError, TypeError):
            self.say(f"{path} is no file of results: it is kept as results-unreadable.json")
            (self.out / "results-unreadable.json").write_text(text, encoding="utf-8")
            return
        if same:
            self.results = results
            done = sum(item["status"] in DONE for item in items.values())
            self.say(f"going on: {done} of {len(items)} items are done")
        else:
            self.say(f"{path} is about another bundle: it is kept as results-before.json")
            (self.out / "results-before.json").write_text(text, encoding="utf-8")
            self.other = results

    def keep(self, identity, is_kept):
        """What another bundle found and this one would find as well: measured items of these names, where all is
        equal that they depend on."""
        items = self.results["items"]
        if identity is None:
            return
        if self.results.get("rivals_are", identity) != identity:
            for name in [name for name in items if is_kept(name)]:
                del items[name]
        self.results["rivals_are"] = identity
        if self.other.get("rivals_are") != identity:
            return
        for name, item in self.other["items"].items():
            if is_kept(name) and item["status"] == "measured":
                items.setdefault(name, item)
                self.say(f"{name}: kept of the bundle before")

    def stop(self, number, _frame):
        """A signal: the program at hand is ended, and what is known is written."""
        self.ended_by = number
        self.kill()
        self.signal_beside(signal.SIGKILL)
        raise Stopped()

    def passed(self):
        """Seconds since the script began."""
        return time.monotonic() - self.began

    def left(self):
        """Seconds until the table has to be printed."""
        return self.seconds - RESERVE - self.passed()

    def say(self, text):
        """To people and to the log."""
        line = f"[{self.passed():6.1f} s] {text}"
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def save(self):
        """Writes the results, whole or not at all."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def start_beside(self, name, command, environment, words):
        """Starts a program that runs beside the others; what it says goes to the file `words`."""
        command = [str(word) for word in command]
        print(f"$ {' '.join(command)} > {words} &", file=self.log, flush=True)
        try:
            with open(words, "w", encoding="utf-8") as file:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                         env=environment, start_new_session=True)
        except OSError as error:
            self.say(f"{name}: {error}")
            return None
        self.say(f"{name}: begun")
        if not self.beside:
            self.beside_began = self.passed()
        self.beside.append(child)
        return child

    def signal_beside(self, number):
        """Sends a signal to what runs beside."""
        for child in self.beside:
            if child.poll() is None:
                try:
                    os.killpg(child.pid, number)
                except ProcessLookupError:
                    pass

    @contextlib.contextmanager
    def alone(self):
        """What runs beside stands still, where the GPU's free memory is looked at; its time stands still, too."""
        self.signal_beside(signal.SIGSTOP)
        began = self.passed()
        try:
            yield
        finally:
            self.signal_beside(signal.SIGCONT)
            self.beside_began += self.passed() - began

    def wait_beside(self, until):
        """Waits until this second of the run for what runs beside, and ends what does not end."""
        while any(child.poll() is None for child in self.beside) and self.passed() < until:
            time.sleep(0.2)
        self.signal_beside(signal.SIGKILL)
        for child in self.beside:
            try:
                child.wait(timeout=TO_DIE)
            except subprocess.TimeoutExpired:
                pass
        self.beside = []

    def kill(self):
        """Ends the program at hand and all that it started."""
        if self.child is not None:
            try:
                os.killpg(self.child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def run(self, command, limit, environment=None, ends_by=None, folder=None):
        """Runs a program for at most so many seconds. With `ends_by`, it gets this signal first and a few
        seconds to save what it has."""
        command = [str(word) for word in command]
        limit = max(1.0, min(limit, self.left()))
        began = time.monotonic()
        print(f"$ {' '.join(command)}", file=self.log, flush=True)
        try:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE, text=True, errors="replace",
                                          env=environment, cwd=folder, start_new_session=True)
        except OSError as error:
            return Said(127, "", f"{command[0]}: {error}", 0.0, False)
        timed_out = False
        try:
            out, err = self.child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            out, err = self.end(ends_by)
        code = -signal.SIGKILL if self.child.returncode is None else self.child.returncode
        self.child = None
        said = Said(code, out, err, time.monotonic() - began, timed_out)
        words = "\n".join(part[-MAX_SAID:] for part in (out.strip(), err.strip()) if part)
        print(f"{words}\n-> {code} after {said.seconds:.1f} s{', cut off' if timed_out else ''}\n",
              file=self.log, flush=True)
        return said

    def end(self, ends_by):
        if ends_by is not None:
            self.child.send_signal(ends_by)
            try:
                return self.child.communicate(timeout=TO_SAVE)
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        try:
            return self.child.communicate(timeout=TO_DIE)
        except subprocess.TimeoutExpired:
            return "", ""  # It hangs in the driver, or what it started holds its output.


def in_short(why):
    """One line of many: where an error begins, or the last."""
    lines = [line.strip() for line in why.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith("error")]
    return (told or lines[-1:] or [""])[0][:160]


@dataclass
class Item:
    """Something to find out: what it is called, in which part, the seconds that it is given at most and needs at
    least (or what says how many), and how it is done. `do(attempt, limit)` returns a dictionary with a "status"."""

    name: str
    part: str
    limit: float
    least: object
    do: object


def passed(ok, **more):
    """The result of a check."""
    return {"status": "passed" if ok else "failed", **more}


def cut(said, **more):
    """The result of what did not end in time: it is run again."""
    return {"status": "cut off", "seconds": round(said.seconds, 1), **more}


def work_through(attempt, items, until, patience=1.0):
    """Does what is not done, each part until its share of the time is over; says what is left out. `patience`
    times the seconds that an item needs at least is what it is begun with."""
    results = attempt.results["items"]
    for item in items:
        before = results.get(item.name)
        if before is not None and before["status"] in DONE:
            continue
        left = min(attempt.left(), until[item.part] - (attempt.seconds - attempt.left()))
        least = patience * (item.least() if callable(item.least) else item.least)
        if left < least:
            tried = before is not None and before["status"] in ("failed", "cut off")
            if not tried:
                results[item.name] = {"status": "no time", "why": f"{max(0, left):.0f} s are left for this part, "
                                                                  f"it may need {least:.0f} s"}
            attempt.say(f"{item.name}: no time: {max(0, left):.0f} s of its part are left")
            continue
        began = time.monotonic()
        try:
            result = item.do(attempt, min(item.limit, left))
        except Stopped:
            kept = {key: value for key, value in (before or {}).items() if key in ("command", "samples", "epochs")}
            results[item.name] = {**kept, "status": "cut off", "why": f"signal {attempt.ended_by}"}
            raise
        except Exception as error:  # One item that cannot be done must not cost the others.
            result = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        result["took_seconds"] = round(time.monotonic() - began, 1)
        results[item.name] = result
        attempt.save()
        why = in_short(result.get("why", ""))
        attempt.say(f"{item.name}: {result['status']}{': ' + why if why else ''}")
