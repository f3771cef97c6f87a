"""How fast is this machine with these nets? Everything in one run and by turns, on random pictures, never on zeros.

    ceilings   products of large matrices in bf16 and fp32, a copy: measured in each turn, beside the nets
    nets       a whole training step and a forward pass in eval mode: ours, plain PyTorch (plain.py), and torchvision's
               or timm's nearest net where it is installed; medians, least and most of at least 5 turns
    share      multiply-adds x 2 / ceiling; a training step counts as three forward passes (conv1's pictures need no
               gradient, so it is a little less)
    loader     from a raw store of random pictures, or from the user's; alone, and with the training step behind it

What was left out, and why, is part of the result.
"""

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from convnet import device, hardware, threads
from convnet.benchmark import ceilings, feed, peak
from convnet.benchmark.forms import OURS, PASSES, PLAIN, Case, Form, Precision, build, case, others
from convnet.benchmark.turns import WARM_UP, Budget, Turns, by_turns, is_out_of_memory, spread, too_slow
from convnet.data.store import Store
from convnet.errors import UsageError, unknown
from convnet.nets import MODELS, list_models
from convnet.nets.describe import summary
from convnet.progress import SILENT, Progress

WHAT = ("training", "inference")
MAIN = ("alexnet", "zfnet", "nin_imagenet", "googlenet", "vgg_a", "vgg_d")  # what `main` stands for
DEFAULT = {"cuda": MAIN}
FEW = ("alexnet", "googlenet")  # where there is no CUDA device: about two minutes on two cores
BATCH = {"cuda": 1024, "cpu": 64, "mps": 64}
LARGE = 5e9  # multiply-adds of a picture: from here on a quarter of the batch
FEED_BATCHES = {"cuda": 64, "cpu": 4, "mps": 16}  # of a pass through the loader
QUICK_BATCH, QUICK_BATCHES, QUICK_PICTURES = 4, 2, 32


@dataclass(frozen=True)
class Asked:
    """nets: names, shell patterns or `main`; none is the default of the device. batch: None is the device's and net's.

    plain: also plain PyTorch and other libraries' nets. memory: peaks in fresh processes on the CPU (on CUDA they are
    always told). quick: tiny sizes, to try the command; its rates say nothing. place: the device.
    """

    nets: tuple[str, ...] = ()
    batch: int | None = None
    precision: Precision = "auto"
    budget: Budget = field(default_factory=Budget)
    plain: bool = True
    memory: bool = False
    store: Path | None = None
    quick: bool = False
    place: str = "auto"

    def names(self, kind: str) -> list[str]:
        """The nets that are meant, each once. Raises: UsageError for a name that no net has."""
        found: dict[str, None] = {}
        for name in self.nets or DEFAULT.get(kind, FEW):
            matching = list(MAIN) if name == "main" else list_models(name)
            if not matching:
                raise UsageError(unknown("net", name, [*MODELS, "main"]))
            found |= dict.fromkeys(matching)
        return list(found)


def benchmark(asked: Asked, progress: Progress = SILENT, command: str = "") -> dict[str, Any]:
    """Measures what is asked for; the result is what JSON holds, with the seconds of every turn.

    Raises: UsageError for unknown nets, a batch below 1, a precision that the device lacks, a store that doesn't fit.
    """
    if asked.batch is not None and asked.batch < 1:
        raise UsageError(f"--batch {asked.batch}: must be at least 1")
    where = device.choose(asked.precision, asked.place)
    cases = [case(name, _batch(asked, name, where.device.type), asked.precision, asked.place) for name in
             asked.names(where.device.type)]  # fmt: skip
    if where.device.type == "cpu":
        device.keep_memory()
    result: dict[str, Any] = {
        "command": command,
        "machine": _machine(where),
        "quick": asked.quick,
        "budget": asdict(asked.budget),
    }
    with feed.opened(asked.store, cases[0], QUICK_PICTURES if asked.quick else feed.PICTURES) as store:
        run = _Run(progress, asked, cases)
        result["nets"] = [_net(of, run) for of in cases]
        result["feed"] = _feed(cases[0], store, run, result["nets"][0])
    result["ceilings"] = {name: spread(rates) for name, rates in run.ceilings.items()}
    progress.finish()
    return result


class _Run:
    """What is asked, the ceilings of all turns so far, and how far the run is: in billions of multiply-adds, as the
    forms of a net come by turns, so that the time left follows from them."""

    def __init__(self, progress: Progress, asked: Asked, cases: list[Case]) -> None:
        self.progress, self.asked, self.done = progress, asked, 0.0
        self.ceilings: dict[str, list[float]] = {}
        place = cases[0].where.device
        self.top = ceilings.tops(place, ceilings.QUICK if asked.quick else ceilings.SIZES[place.type])
        self.cost = {of.name: summary(of.name)["multiply_adds"] * of.batch / 1e9 for of in cases}
        total = sum((PASSES + 1) * (2 if asked.plain else 1) * cost for cost in self.cost.values())
        total += 2 * PASSES * (QUICK_BATCHES if asked.quick else FEED_BATCHES[place.type]) * self.cost[cases[0].name]
        progress.start("benchmark", max(1, round(total * (WARM_UP + asked.budget.repeats))), unit="GMAC")

    def told(self, of: Case, what: str, passes: dict[str, float]) -> Callable[[str], None]:
        """What `by_turns` tells its progress to. passes: forward passes that a call of each piece of work is worth."""

        def tell(name: str) -> None:
            self.done += passes.get(name, 0.0) * self.cost[of.name]
            self.progress.update(round(self.done), doing=f"{of.name}, {what}")

        return tell


def _net(of: Case, run: _Run) -> dict[str, Any]:
    """A net's forms, trained and asked by turns, with the ceilings in each turn."""
    kinds, absent, asked = [OURS], {}, run.asked
    if asked.plain:
        kinds.append(PLAIN)
        other, why = others(of.name)
        if other is None:
            absent["other libraries"] = why
        else:
            kinds.append(other)
    row: dict[str, Any] = {"net": of.name, "batch": of.batch, "recipe": of.recipe.name, "forms": [], "left_out": absent}
    row |= {name: summary(of.name)[name] for name in ("parameters", "multiply_adds", "input")}
    plainly = asked.plain and of.where.device.type == "cpu"
    if why := peak.does_not_fit(of, torch.float32 if plainly else of.where.dtype):
        row["left_out"] |= dict.fromkeys(kinds, why)
        return row
    peaks = {kind: _peak(kind, of, asked) for kind in kinds}
    with _memory_error(row, "every form"):
        forms = {kind: build(kind, of) for kind in kinds}
        found = {what: _turns(of, run, row, forms, what) for what in WHAT}
        row["forms"] = [
            {
                "form": kind,
                "how": form.how,
                "multiply_adds": dict(zip(WHAT, form.multiply_adds, strict=True)),
                "peak": peaks[kind],
                **{what: found[what].get(kind) for what in WHAT},
            }
            for kind, form in forms.items()
        ]
    return row


def _turns(of: Case, run: _Run, row: dict[str, Any], forms: dict[str, Form], what: str) -> dict[str, dict[str, Any]]:
    """Each form's rates in training or inference, held against plain's and against the ceiling of the same turns."""
    training = what == "training"
    for form in forms.values():
        form.net.train(training)
    top, passes = run.top, PASSES if training else 1
    works = {kind: form.step if training else form.forward for kind, form in forms.items()}
    told = run.told(of, what, dict.fromkeys(works, float(passes)))
    turns, left_out = by_turns({**top.works, **works}, run.asked.budget, of.where.device, told)
    row["left_out"] |= {f"{name}, {what}": why for name, why in left_out.items()} | top.left_out
    rates = {name: turns[name].rates(amount) for name, amount in top.amounts.items() if name in turns}
    for name, values in rates.items():
        run.ceilings.setdefault(name, []).extend(values)
    best = next((name for name in (ceilings.BF16, ceilings.FP32) if name in rates), None)
    row[f"ceiling_{what}"] = {"name": best, "flops": spread(rates[best])["median"] if best else None}
    found = {name: rated(turns[name], of.batch) for name in works if name in turns}
    for name, each in found.items():
        flops = 2 * forms[name].multiply_adds[0 if training else 1] * passes
        each["share"] = share(each["rate"]["median"], flops, row[f"ceiling_{what}"]["flops"])
        each["times_plain"] = each["rate"]["median"] / found[PLAIN]["rate"]["median"] if PLAIN in found else None
    return found


def share(rate: float, flops: int, ceiling: float | None) -> float | None:
    """The part of the ceiling (FLOP/s) that so many pictures a second of so many FLOP each are.

    >>> share(100.0, 3 * 2 * 724_406_816, 1e12)
    0.4346440896
    """
    return None if ceiling is None else rate * flops / ceiling


def rated(turns: Turns, pictures: int) -> dict[str, Any]:
    """{"seconds", "calls", "rate"}: every turn, and the spread of pictures a second, a call being so many pictures."""
    return {"seconds": list(turns.seconds), "calls": turns.calls, "rate": spread(turns.rates(pictures))}


def _feed(of: Case, store: Store, run: _Run, net: dict[str, Any]) -> dict[str, Any]:
    """The loader alone, the step alone, and both. net: what `_net` found, which says how long a step takes."""
    workers = 1 if store.encoding == "raw" else threads.most()  # as `convnet train`
    asked, most = run.asked, QUICK_BATCHES if run.asked.quick else FEED_BATCHES[of.where.device.type]
    batches, why = _passes(net, asked.budget, most)
    row: dict[str, Any] = {"net": of.name, "batch": of.batch, "workers": workers, "store": store.describe(),
                           "made": asked.store is None, "left_out": {feed.PIPELINE: why} if why else {}}  # fmt: skip
    with _memory_error(row, "loader and pipeline"):
        made = feed.feed(of, store, batches or most, workers, with_step=batches > 0)
        passes = dict.fromkeys((feed.COMPUTE, feed.PIPELINE), float(PASSES * batches))
        turns, left_out = by_turns(made.works, asked.budget, of.where.device, run.told(of, "pipeline", passes))
        row["left_out"] |= left_out
        row["parts"] = {name: rated(each, made.pictures[name]) for name, each in turns.items()}
        row |= _ratios(row["parts"])
    return row


def _passes(net: dict[str, Any], budget: Budget, most: int) -> tuple[int, str]:
    """(batches of a pass through loader and step, ""): as many as fit the limit; (0, why not) for less than two."""
    training = next((form["training"] for form in net["forms"] if form["form"] == OURS), None)
    if training is None:
        return 0, f"{net['net']}'s training was not measured"
    seconds = min(training["seconds"]) / training["calls"]
    batches = min(most, int(budget.limit / budget.repeats / seconds))
    return (batches, "") if batches > 1 else (0, too_slow(2 * seconds, budget))


def _ratios(parts: dict[str, Any]) -> dict[str, float]:
    """The pipeline's and the loader's rates, in those of the step on pictures in memory."""
    if feed.COMPUTE not in parts:
        return {}
    compute = parts[feed.COMPUTE]["rate"]["median"]
    pairs = {"pipeline_share": feed.PIPELINE, "loader_times": feed.LATER}
    return {ratio: parts[name]["rate"]["median"] / compute for ratio, name in pairs.items() if name in parts}


def _peak(kind: str, of: Case, asked: Asked) -> dict[str, Any]:
    """{"bytes", "why"}: of training; why there is no number."""
    if of.where.device.type == "cuda":
        try:
            return {"bytes": peak.on_cuda(kind, of), "why": ""}
        except torch.OutOfMemoryError:
            return {"bytes": None, "why": "the memory does not suffice"}
    if of.where.device.type != "cpu" or not asked.memory:
        return {"bytes": None, "why": "--memory was not asked for"}
    found, why = peak.on_cpu(kind, of)
    return {"bytes": found, "why": why}


@contextmanager
def _memory_error(row: dict[str, Any], what: str) -> Iterator[None]:
    """Within it running out of memory is told in the row, and ends nothing else."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        row["left_out"][what] = "the memory does not suffice; try a smaller --batch"


def _batch(asked: Asked, name: str, kind: str) -> int:
    if asked.batch is not None:
        return asked.batch
    if asked.quick:
        return QUICK_BATCH
    return BATCH[kind] // (4 if summary(name)["multiply_adds"] > LARGE else 1)


def _machine(where: device.Device) -> dict[str, Any]:
    cores = hardware.cores()
    gpu = torch.cuda.get_device_name(where.device) if where.device.type == "cuda" else None
    return {
        "processor": hardware.processor().name,
        "cores": cores.n,
        "threads": where.threads,
        "memory": hardware.memory().total,
        "gpu": gpu,
        "device": where.reason,
        "precision": "bf16" if where.dtype == torch.bfloat16 else "fp32",
        "versions": hardware.versions() | {"torch": str(torch.__version__), "cuda": torch.version.cuda},
        "implementation": f"{platform.python_implementation()} on {sys.platform}",
    }
