"""Part 3: training on CIFAR-10 for the rest of the time."""

import json
import signal

from .correctness import shown
from .progress import TO_SAVE, Item


NAME = "training on CIFAR-10"
# Pictures to train on in all of CIFAR-10: with fewer, no accuracy can be held against what others reached.
ALL = 50_000


def items(place, sizes, data):
    return [Item(NAME, "training", 1e9, 25, lambda s, t: train(s, t, place, sizes, data))]


def train(attempt, limit, place, sizes, data):
    """Goes on where the last run on this machine stopped."""
    source = data or place.path("data")
    if not (source / "index.json").exists():
        return {"status": "not here", "why": f"{source} is no data set that synfire pack has written"}
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    folder = place.work / f"training-{place.manifest['payload_sha256'][:16]}-{'given' if data else 'part'}"
    command = [place.synfire, "train", place.path("configs", "ms_resnet18-cifar10.toml"), "--device", sizes.device]
    settings = [f"data.path={source}", f"run.folder={folder}", f"run.precision={sizes.precision}", *sizes.training]
    for setting in settings:
        command += ["--set", setting]
    said = attempt.run(command, limit - TO_SAVE, place.environment, ends_by=signal.SIGTERM)
    epochs = read(folder / "metrics.jsonl")
    result = {"command": shown(place, command), "samples": samples(index), "epochs": epochs}
    if said.code != 0:
        result = further(attempt.results["items"].get(NAME, {}), result)
        epochs = result["epochs"]
    if epochs:
        last = epochs[-1]
        result["why"] = (f"{len(epochs)} epochs, test accuracy {100 * (last['test_accuracy'] or 0):.2f} % after "
                         f"{last['seconds']:.1f} s of training")
    if said.code == 0:
        return {"status": "measured", **result}
    if said.code in (128 + signal.SIGTERM, -signal.SIGTERM) or said.timed_out:
        result.setdefault("why", "the time was over before the first epoch")
        return {"status": "cut off", **result}
    return {"status": "failed", **result, "why": said.last()}


def further(before, now):
    """The run that reached further: on another machine training begins at zero, and may not get as far as the one
    before. More pictures weigh more than epochs."""
    def reach(result):
        return result["samples"].get("train", 0) if result["epochs"] else 0, len(result["epochs"])

    if not before.get("epochs") or reach(before) <= reach(now):
        return now
    return {key: before[key] for key in ("command", "samples", "epochs")}


def samples(index):
    """Samples by split, as the index has them."""
    return {name: sum(len(shard["offsets"]) for shard in split["shards"]) for name, split in index["splits"].items()}


def read(path):
    """Accuracy over seconds."""
    epochs, seconds = [], 0.0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            epoch = json.loads(line)
        except ValueError:
            continue
        seconds += epoch["train_seconds"]
        epochs.append({"epoch": epoch["epoch"], "seconds": seconds, "loss": epoch["loss"],
                       "test_accuracy": epoch["test_accuracy"], "images_per_second": epoch["images_per_second"],
                       "data_wait_seconds": epoch["data_wait_seconds"]})
    return epochs
