"""How fast is this machine with these nets? Everything in one run and by turns, on random pictures, never on zeros.

    ceilings   products of large matrices in bf16 and fp32, a copy: measured in each turn, beside the nets
    nets       a whole training step and a forward pass in eval mode: ours, plain PyTorch (plain.py), and torchvision's
               or timm's nearest net where it is installed, on CUDA ours by torch.compile; medians, least and most of at
               least 5 turns
    share      multiply-adds x 2 / ceiling; a training step counts as three forward passes (conv1's pictures need no
               gradient, so it is a little less)
    loader     from a raw store of random pictures, or from the user's; alone, and with the training step behind it

What was left out, and why, is part of the result.
"""

import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from convnet import device, hardware, threads
from convnet.benchmark import ceilings, loader, memory
from convnet.benchmark.forms import COMPILED, OURS, PASSES, PLAIN, Case, Form, Precision, build, case_of, others
from convnet.benchmark.timing import WARM_UP, Budget, by_turns, first_line, no_memory, spread, too_slow
from convnet.data.store import Store
from convnet.errors import UsageError, unknown
from convnet.io.strict_json import Json
from convnet.nets import MODELS, list_models
from convnet.nets.describe import summary
from convnet.progress import SILENT, Progress

WHAT = ("training", "inference")
MAIN = ("alexnet", "zfnet", "nin_imagenet", "googlenet", "vgg_a", "vgg_d")  # what `main` stands for
DEFAULT = {"cuda": MAIN}
FEW = ("alexnet", "googlenet")  # where there is no CUDA device: about two minutes on two cores
BATCH = {"cuda": 1024, "cpu": 64, "mps": 64}
LARGE = 5e9  # multiply-adds of a picture: from here on a quarter of the batch
LOADER_BATCHES = {"cuda": 64, "cpu": 4, "mps": 16}  # of a pass through the loader
QUICK_BATCH, QUICK_BATCHES, QUICK_PICTURES = 4, 2, 32


@dataclass(frozen=True)
class Options:
    """nets: names, shell patterns or `main`; none is the default of the device. batch: None is the device's and net's.

    plain: also plain PyTorch and other libraries' nets. memory: peaks in fresh processes on the CPU (on CUDA they are
    always told). quick: tiny sizes, to try the command; its rates say nothing.
    """

    nets: tuple[str, ...] = ()
    batch: int | None = None
    precision: Precision = "auto"
    budget: Budget = field(default_factory=Budget)
    plain: bool = True
    memory: bool = False
    store: Path | None = None
    quick: bool = False
    device: str = "auto"

    def names(self, kind: str) -> list[str]:
        """The nets that are meant, each once. Raises: UsageError for a name that no net has."""
        names: dict[str, None] = {}
        for name in self.nets or DEFAULT.get(kind, FEW):
            matching = list(MAIN) if name == "main" else list_models(name)
            if not matching:
                raise UsageError(unknown("net", name, [*MODELS, "main"]))
            names |= dict.fromkeys(matching)
        return list(names)

    def batch_of(self, name: str, kind: str) -> int:
        """Pictures in a step of a net."""
        if self.batch is not None:
            return self.batch
        if self.quick:
            return QUICK_BATCH
        return BATCH[kind] // (4 if summary(name)["multiply_adds"] > LARGE else 1)


def benchmark(options: Options, progress: Progress = SILENT, command: str = "") -> Json:
    """Measures what the options say; the result is what JSON holds, with the seconds of every turn.

    Raises: UsageError for unknown nets, a batch below 1, a precision that the device lacks, a store that doesn't fit.
    """
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch {options.batch}: must be at least 1")
    where = device.choose(options.precision, options.device)
    kind = where.device.type
    cases = [
        case_of(name, options.batch_of(name, kind), options.precision, options.device) for name in options.names(kind)
    ]
    if kind == "cpu":
        device.keep_memory()
    result: Json = {
        "command": command,
        "machine": _machine(where),
        "quick": options.quick,
        "budget": asdict(options.budget),
    }
    with loader.opened(options.store, cases[0], QUICK_PICTURES if options.quick else loader.PICTURES) as store:
        run = _Run(progress, options, cases)
        result["nets"] = [_net(case, run) for case in cases]
        result["feed"] = _loader(cases[0], store, run, result["nets"][0])
    result["ceilings"] = {name: spread(rates) for name, rates in run.rates.items()}
    progress.finish()
    return result


class _Run:
    """The options, the ceilings of all turns so far, and how far the run is: in billions of multiply-adds, as the
    forms of a net come by turns, so that the time left follows from them."""

    def __init__(self, progress: Progress, options: Options, cases: list[Case]) -> None:
        self.progress, self.options, self.done = progress, options, 0.0
        self.rates: dict[str, list[float]] = {}
        where = cases[0].where.device
        sizes = ceilings.QUICK if options.quick else ceilings.SIZES[where.type]
        self.top, self.batches = ceilings.ceilings(where, sizes), LOADER_BATCHES[where.type]
        self.cost = {case.name: summary(case.name)["multiply_adds"] * case.batch / 1e9 for case in cases}
        if options.quick:
            self.batches = QUICK_BATCHES
        total = sum((PASSES + 1) * (2 if options.plain else 1) * cost for cost in self.cost.values())
        total += 2 * PASSES * self.batches * self.cost[cases[0].name]
        progress.start("benchmark", max(1, round(total * (WARM_UP + options.budget.repeats))), unit="GMAC")

    def reporter(self, case: Case, what: str, passes: dict[str, float]) -> Callable[[str], None]:
        """What `by_turns` reports to. passes: forward passes that a call of each piece of work is worth."""

        def report(name: str) -> None:
            self.done += passes.get(name, 0.0) * self.cost[case.name]
            self.progress.update(round(self.done), doing=f"{case.name}, {what}")

        return report


def _net(case: Case, run: _Run) -> Json:
    """A net's forms, in training and inference by turns, with the ceilings in each turn."""
    names, left_out, options = [OURS], dict[str, str](), run.options
    is_cuda = case.where.device.type == "cuda"
    if options.plain:
        other, why = others(case.name)
        names += [PLAIN, *([COMPILED] if is_cuda else []), *([] if other is None else [other])]
        left_out |= {"other libraries": why} if other is None else {}
    row: Json = {"net": case.name, "batch": case.batch, "recipe": case.recipe.name, "forms": [], "left_out": left_out}
    row |= {name: summary(case.name)[name] for name in ("parameters", "multiply_adds", "input")}
    is_narrow = is_cuda or not options.plain  # on the CPU the plain form computes in float32
    if why := memory.does_not_fit(case, case.where.dtype if is_narrow else torch.float32):
        left_out |= dict.fromkeys(names, why)
        return row
    with no_memory(left_out, "every form"):
        peaks = {name: _peak(name, case, options) for name in names if name != COMPILED}
        forms = {name: build(name, case) for name in names}
        if COMPILED in forms:
            _warm_up(forms, left_out)
        measured = {what: _turns(case, run, row, forms, what) for what in WHAT}
        row["forms"] = [
            {
                "form": name,
                "how": form.how,
                "multiply_adds": dict(zip(WHAT, form.multiply_adds, strict=True)),
                "peak": peaks.get(name, {"bytes": None, "why": "not measured"}),
                **{what: measured[what].get(name) for what in WHAT},
            }
            for name, form in forms.items()
        ]
    return row


def _warm_up(forms: dict[str, Form], left_out: dict[str, str]) -> None:
    """torch.compile works at the first call; what it can't compile is left out."""
    try:
        forms[COMPILED].step()
        forms[COMPILED].net.eval()
        forms[COMPILED].forward()
    except Exception as error:  # of many kinds
        del forms[COMPILED]
        left_out[COMPILED] = first_line(error)


def _turns(case: Case, run: _Run, row: Json, forms: dict[str, Form], what: str) -> dict[str, Json]:
    """Each form's rates in training or inference, held against plain's and against the ceiling of the same turns."""
    training = what == "training"
    for form in forms.values():
        form.net.train(training)
    top, passes = run.top, PASSES if training else 1
    works = {name: form.step if training else form.forward for name, form in forms.items()}
    report = run.reporter(case, what, dict.fromkeys(works, float(passes)))
    turns, left_out = by_turns({**top.works, **works}, run.options.budget, case.where.device, report)
    row["left_out"] |= {f"{name}, {what}": why for name, why in left_out.items()} | top.left_out
    rates = {name: turns[name].rates(amount) for name, amount in top.amounts.items() if name in turns}
    for name, values in rates.items():
        run.rates.setdefault(name, []).extend(values)
    best = next((name for name in (ceilings.BF16, ceilings.FP32) if name in rates), None)
    row[f"ceiling_{what}"] = {"name": best, "flops": spread(rates[best])["median"] if best else None}
    measured = {name: turns[name].to_dict(case.batch) for name in works if name in turns}
    for name, each in measured.items():
        flops, rate = 2 * forms[name].multiply_adds[0 if training else 1] * passes, each["rate"]["median"]
        each["share"] = share(rate, flops, row[f"ceiling_{what}"]["flops"])
        each["times_plain"] = rate / measured[PLAIN]["rate"]["median"] if PLAIN in measured else None
    return measured


def share(rate: float, flops: int, ceiling: float | None) -> float | None:
    """The part of the ceiling (FLOP/s) that so many pictures a second of so many FLOP each are.

    >>> share(100.0, 3 * 2 * 724_406_816, 1e12)
    0.4346440896
    """
    return None if ceiling is None else rate * flops / ceiling


def _loader(case: Case, store: Store, run: _Run, net: Json) -> Json:
    """The loader alone, the step alone, and both. net: what `_net` gave, which says how long a step takes."""
    workers = 1 if store.encoding == "raw" else threads.most()  # as `convnet train`
    batches, why = _batches(net, run.options.budget, run.batches)
    row: Json = {"net": case.name, "batch": case.batch, "workers": workers, "store": store.describe(),
                 "made": run.options.store is None, "left_out": {loader.PIPELINE: why} if why else {}}  # fmt: skip
    with no_memory(row["left_out"], "loader and pipeline"):
        works, pictures = loader.passes(case, store, batches or run.batches, workers, with_step=batches > 0)
        report = run.reporter(
            case, "pipeline", dict.fromkeys((loader.COMPUTE, loader.PIPELINE), float(PASSES * batches))
        )
        turns, left_out = by_turns(works, run.options.budget, case.where.device, report)
        row["left_out"] |= left_out
        row["parts"] = {name: each.to_dict(pictures[name]) for name, each in turns.items()}
        rates = {name: part["rate"]["median"] for name, part in row["parts"].items()}
        for ratio, name in (("pipeline_share", loader.PIPELINE), ("loader_times", loader.LATER)):
            if loader.COMPUTE in rates and name in rates:
                row[ratio] = rates[name] / rates[loader.COMPUTE]
    return row


def _batches(net: Json, budget: Budget, most: int) -> tuple[int, str]:
    """(batches of a pass through loader and step, ""): as many as fit the limit; (0, why not) for less than two."""
    training = next((form["training"] for form in net["forms"] if form["form"] == OURS), None)
    if training is None:
        return 0, f"{net['net']}'s training was not measured"
    seconds = min(training["seconds"]) / training["calls"]
    batches = min(most, int(budget.limit / budget.repeats / seconds))
    return (batches, "") if batches > 1 else (0, too_slow(2 * seconds, budget))


def _peak(form: str, case: Case, options: Options) -> Json:
    """{"bytes", "why"}: of training; why there is no number."""
    if case.where.device.type == "cuda":
        peak: Json = {"bytes": None, "why": ""}
        with no_memory(peak, "why"):
            peak["bytes"] = memory.on_cuda(form, case)
        return peak
    if case.where.device.type != "cpu" or not options.memory:
        return {"bytes": None, "why": "--memory was not asked for"}
    n_bytes, reason = memory.on_cpu(form, case)
    return {"bytes": n_bytes, "why": reason}


def _machine(where: device.Device) -> Json:
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
