"""What was found, for people."""

import statistics

from . import roofline
from .correctness import GRAPH_API
from .progress import in_short
from .rivals import PROFILE, SAVINGS, WHOLE
from .training import ALL, NAME


# Phases of a convolution.
CONVOLUTIONS = ("forward", "data_gradient", "weight_gradient")


def text(results, sizes):
    """The tables that come last."""
    parts = [status(results), rivals(results, sizes), ceilings(results)]
    for model, batch, *_ in sizes.rivals[:2]:
        parts += [phases(results, model, batch), interfaces(results, model, batch)]
    parts += [left_out(results, sizes), training(results)]
    return "\n".join(part for part in parts if part)


def status(results):
    """A line per check."""
    lines = ["", "correctness and what else is no speed:"]
    for name, item in results["items"].items():
        if item["status"] != "measured":
            why = in_short(item.get("why", ""))
            number = f" ({item['good']})" if "good" in item else ""
            lines.append(f"  {item['status']:9} {name}{number}{': ' + why if why else ''}")
    return "\n".join(lines)


def measured(results, start):
    """Results whose names begin so."""
    items = results["items"].items()
    return [item for name, item in items if name.startswith(start) and "images_per_second" in item]


def of_engine(results, model, batch, engine):
    """Median rate and memory over the rounds, smallest and largest batch, how many rounds."""
    runs = measured(results, f"{model} {batch}: {engine}")
    runs = [run for run in runs if run.get("input") != "copied with every batch" and "profile" not in run]
    if not runs:
        return None
    rates = [run["images_per_second"] for run in runs]
    return {
        "images_per_second": statistics.median(rate["median"] for rate in rates),
        "min": min(rate["min"] for rate in rates),
        "max": max(rate["max"] for rate in rates),
        "peak_memory_mib": statistics.median(run["peak_memory_mib"] for run in runs),
        "runs": len(runs),
    }


def summary(results, sizes):
    """The comparison, for the file."""
    rows = []
    for model, batch, *_ in sizes.rivals:
        us = of_engine(results, model, batch, "synfire before")
        for engine in (*sizes.first, *sizes.then):
            other = of_engine(results, model, batch, f"{engine}, round")
            if us is None or other is None:
                continue
            rows.append({"model": model, "batch": batch, "rival": engine, "synfire": us, "other": other,
                         "times_as_fast": us["images_per_second"] / other["images_per_second"],
                         "share_of_memory": us["peak_memory_mib"] / other["peak_memory_mib"]})
    return rows


def rivals(results, sizes):
    head = f"{'':34}{'images/s':>10}{'min':>10}{'max':>10}{'MiB':>9}{'runs':>5}{'synfire is':>12}{'memory':>8}"
    lines = ["", head]
    for model, batch, *_ in sizes.rivals:
        us = of_engine(results, model, batch, "synfire before")
        named = [("synfire", us)]
        named += [(engine, of_engine(results, model, batch, f"{engine}, round")) for engine in (*sizes.first, *sizes.then)]
        for name, row in named:
            if row is None:
                continue
            ratio = share = ""
            if us is not None and row is not us:
                ratio = f"{us['images_per_second'] / row['images_per_second']:.2f}x"
                share = f"{us['peak_memory_mib'] / row['peak_memory_mib']:.2f}x"
            lines.append(f"{f'{model} {batch} {name}':34}{row['images_per_second']:10.1f}{row['min']:10.1f}"
                         f"{row['max']:10.1f}{row['peak_memory_mib']:9.0f}{row['runs']:5}{ratio:>12}{share:>8}")
        bound = bounds(results).get((model, batch))
        if bound and us:
            share = us["images_per_second"] / bound
            lines.append(f"{f'{model} {batch} roofline':34}{bound:10.1f}   synfire is at {100 * share:.1f} % of it")
    return "\n".join(lines) if len(lines) > 2 else ""


def rates(results):
    """Measured on this machine, or those assumed for an H200."""
    found = results["items"].get("ceilings", {})
    if found.get("device") == "cuda":
        return {key: found[key] for key in ("flops_per_second", "bytes_per_second")}, "measured here"
    return roofline.H200, "assumed for an H200"


def bounds(results):
    """Images per second at most, by model and batch."""
    ceiling, _ = rates(results)
    found = {}
    for name, build in roofline.NETWORKS.items():
        net = build()
        for batch in (64, 200, 256):
            found[name, batch] = batch / roofline.bound(net, batch, ceiling)
    return found


def ceilings(results):
    ceiling, where = rates(results)
    return (f"\nroofline at {ceiling['flops_per_second'] / 1e12:.0f} TFLOP/s and "
            f"{ceiling['bytes_per_second'] / 1e12:.2f} TB/s, {where}")


def phases(results, model, batch):
    """The profile beside the roofline."""
    item = results["items"].get(f"{model} {batch}: {PROFILE}", {})
    if "profile" not in item or model not in roofline.NETWORKS:
        return ""
    ceiling, _ = rates(results)
    rows = roofline.NETWORKS[model]().rows
    least = {}
    for row in rows:
        key = (row.layer if row.phase != "update" else "loss, update", row.phase)
        least[key] = least.get(key, 0.0) + row.seconds(batch, ceiling)
    lines = ["", f"{model} {batch}, ms per batch, run layer by layer (graphs off, waited for after each)",
             f"{'':24}{'measured':>10}{'roofline':>10}{'share':>8}"]
    for phase in roofline.PHASES:
        took = sum(layer["seconds"].get(phase, 0.0) for layer in item["profile"])
        bound = sum(seconds for (_, of), seconds in least.items() if of == phase)
        if took > 0:
            lines.append(f"{phase:24}{1e3 * took:10.2f}{1e3 * bound:10.2f}{100 * bound / took:7.1f}%")
    gaps = []
    for layer in item["profile"]:
        for phase, took in layer["seconds"].items():
            bound = least.get((layer["layer"], phase), 0.0)
            gaps.append((took - bound, took, bound, f"{layer['layer']}: {phase}"))
    lines.append("  the largest distances from it:")
    for _, took, bound, name in sorted(gaps, reverse=True)[:8]:
        lines.append(f"  {name:54}{1e3 * took:9.3f}{1e3 * bound:9.3f}")
    return "\n".join(lines)


def by_shape(results, model, batch):
    """Seconds of a batch that the convolutions of a shape take in each direction, all layers of that shape together,
    by both interfaces of cuDNN."""
    profiles = [results["items"].get(f"{model} {batch}: {PROFILE}{more}", {}).get("profile")
                for more in ("", f", {GRAPH_API}")]
    if None in profiles or model not in roofline.NETWORKS:
        return []
    shapes = roofline.NETWORKS[model]().shapes
    found = {}
    for interface, layers in zip(("legacy", "graph"), profiles):
        for layer in layers:
            # At most one convolution is in a layer; a pool has no shape.
            shape = shapes.get(layer["layer"])
            for phase in CONVOLUTIONS if shape else ():
                if phase in layer["seconds"]:
                    row = found.setdefault((shape, phase), {"legacy": 0.0, "graph": 0.0, "layers": set()})
                    row[interface] += layer["seconds"][phase]
                    row["layers"].add(layer["layer"])
    return [{"model": model, "batch": batch, "shape": shape, "direction": phase, "layers": len(row["layers"]),
             "legacy_seconds": row["legacy"], "graph_seconds": row["graph"]}
            for (shape, phase), row in found.items()]


def interfaces(results, model, batch):
    """cuDNN's graph API beside its legacy calls, shape by shape."""
    rows = by_shape(results, model, batch)
    if not rows:
        return ""
    lines = ["", f"{model} {batch}, convolutions by cuDNN's interfaces, ms per batch, run layer by layer",
             f"{'':30}{'layers':>7}  {'':18}{'legacy':>10}{'graph':>10}{'graph takes':>13}"]
    for row in rows:
        legacy, graph = row["legacy_seconds"], row["graph_seconds"]
        share = f"{graph / legacy:.2f}x" if legacy > 0 else ""
        lines.append(f"{row['shape']:30}{row['layers']:7}  {row['direction']:18}{1e3 * legacy:10.3f}{1e3 * graph:10.3f}"
                     f"{share:>13}")
    totals = [sum(row[f"{name}_seconds"] for row in rows) for name in ("legacy", "graph")]
    best = sum(min(row["legacy_seconds"], row["graph_seconds"]) for row in rows)
    lines.append(f"{'all':57}{1e3 * totals[0]:10.3f}{1e3 * totals[1]:10.3f}{totals[1] / max(totals[0], 1e-12):12.2f}x")
    lines.append(f"{'all, the faster of both for each':57}{'':10}{1e3 * best:10.3f}"
                 f"{best / max(totals[0], 1e-12):12.2f}x")
    for name, start in (("legacy calls", "synfire before"), (GRAPH_API, f"synfire, {GRAPH_API}")):
        if (whole := of_engine(results, model, batch, start)) is not None:
            lines.append(f"  images/s as a whole, {name}: {whole['images_per_second']:.1f}")
    return "\n".join(lines)


def left_out(results, sizes):
    """What each saving gives: the rate with all of them over that without it."""
    lines = ["", f"{'what a saving gives, images/s':44}{'with it':>10}{'without':>10}{'gives':>8}"]
    for index in sizes.left_out:
        model, batch = sizes.rivals[index][:2]
        whole = of_engine(results, model, batch, WHOLE)
        for saving in SAVINGS:
            without = of_engine(results, model, batch, f"synfire without {saving}")
            if whole is None or without is None:
                continue
            rates = [row["images_per_second"] for row in (whole, without)]
            lines.append(f"{f'{model} {batch} {saving}':44}{rates[0]:10.1f}{rates[1]:10.1f}"
                         f"{100 * (rates[0] / rates[1] - 1):+7.1f}%")
    return "\n".join(lines) if len(lines) > 2 else ""


def training(results):
    item = results["items"].get(NAME, {})
    epochs = item.get("epochs") or []
    if not epochs:
        return ""
    train, test = (item["samples"].get(split, 0) for split in ("train", "test"))
    lines = ["", f"{NAME}: {train:,} pictures, tested on {test:,}"]
    if train < ALL:
        lines[-1] += f"; of {ALL:,}: no accuracy to be held against what others reached"
    lines += [f"{'epoch':>6}{'seconds':>10}{'loss':>9}{'test accuracy':>15}{'images/s':>10}"]
    for epoch in epochs[-8:]:
        accuracy = epoch["test_accuracy"]
        lines.append(f"{epoch['epoch']:6}{epoch['seconds']:10.1f}{epoch['loss']:9.4f}"
                     f"{'' if accuracy is None else f'{100 * accuracy:.2f} %':>15}{epoch['images_per_second']:10.0f}")
    return "\n".join(lines)
