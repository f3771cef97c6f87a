"""Everything that is to be measured on a GPU, in one go of about 25 minutes; a part that fails doesn't stop the rest.

    PYTHONPATH=. python benchmarks/gpu.py --out FOLDER [--minutes 27] [--only machine,kernels]
    PYTHONPATH=. python benchmarks/gpu.py --out FOLDER --small    # tries it in 2 minutes, on the CPU by the interpreter

Where a command may take 10 minutes at most, in three of them, each with a folder of its own:

    PYTHONPATH=. python benchmarks/gpu.py --out FOLDER --minutes 8 --only machine,kernels,steps,data
    PYTHONPATH=. python benchmarks/gpu.py --out FOLDER --minutes 8 --only machine,tests,nets
    PYTHONPATH=. python benchmarks/gpu.py --out FOLDER --minutes 8 --only machine,memory,curves,compiled

FOLDER/gpu.json holds all results and is written anew after each part; FOLDER/gpu.txt the tables. Parts, in order:

    machine    the device, versions, and its ceilings: matrix products in bf16 and fp32, a copy
    tests      pytest -m cuda
    kernels    each kernel's bytes a second against the copy's, and its plain form (kernels.py)
    steps      AlexNet's training step with 1024 and 128 pictures: plain PyTorch under autocast, then our forms one by
               one
    data       training from pictures on the device (raw, 4:2:0), and copied there, against one batch again and again
    nets       training and inference of the other nets
    memory     the peak of training of each net, as torch's allocator counts
    curves     200 steps by the fast forms and by plain fp32, two seeds
    compiled   torch.compile of the step and of inference

Random data, never zeros; rates are pictures a second, the median of 5 turns (least and most), of all forms by turns.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from convnet import device
from convnet.benchmark import ceilings, feed, forms
from convnet.benchmark.plain import plain_alexnet
from convnet.benchmark.turns import Budget, by_turns, spread
from convnet.data import device_loader
from convnet.data.loader import Loader
from convnet.data.preprocess import of_recipe
from convnet.kernels.cuda import available as on_cuda
from convnet.kernels.ops import norm_pool
from convnet.kernels.plain import Block
from convnet.nets import create_model
from convnet.progress import Silent
from convnet.recipe import Recipe, load_recipe
from convnet.training import optim
from convnet.training.step import WARM_UP, EagerSteps, GraphStep

SMALL = "--small" in sys.argv
PLACE = torch.device("cuda" if torch.cuda.is_available() and not SMALL else "cpu")
PAPER = Block(5, 2.0, 1e-4, 0.75, size=3, stride=2, relu_before=True)
MAIN = "cifar_18" if SMALL else "alexnet"  # AlexNet's sizes take the interpreter minutes
BATCHES = (4,) if SMALL else (1024, 128)
NETS = {"nin_small": 2} if SMALL else {"vgg_d": 256, "googlenet": 1024, "nin_imagenet": 1024, "zfnet": 1024}
TABLE = {  # of SPEED.md
    **dict.fromkeys(("alexnet", "zfnet", "nin_imagenet", "googlenet"), 1024),
    **dict.fromkeys(("vgg_a", "vgg_b", "vgg_c", "vgg_d", "vgg_e"), 256),
}
BUDGET = Budget(5, 1e-3 if SMALL else 0.5, 300.0)
STEPS = 6 if SMALL else 200  # of a curve
Work = Callable[[], object]


@dataclass
class Journal:
    """Where results go, and when it must end."""

    out: Path
    until: float
    results: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.text.append(line)

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        (self.out / "gpu.txt").write_text("\n".join(self.text) + "\n", encoding="utf-8")

    def made(self, makers: dict[str, Callable[[], Work]]) -> dict[str, Work]:
        """The works that can be made; why another can't is told."""
        found = {}
        for name, make in makers.items():
            try:
                found[name] = make()
            except Exception as error:
                self.say(f"  {name:44} can't be made: {first_line(error)}")
        return found

    def rates(self, works: dict[str, Work], pictures: dict[str, int], multiply_adds: int = 0) -> dict[str, Any]:
        """Of each work pictures a second, by turns; the first is what the others are held against."""
        for name in list(works):
            try:
                for _ in range(WARM_UP + 2):
                    works[name]()
            except Exception as error:
                self.say(f"  {name:44} failed: {first_line(error)}")
                del works[name]
        turns, left_out = by_turns(works, BUDGET, PLACE, lambda name: None)
        found: dict[str, Any] = {}
        base = None
        for name, each in turns.items():
            seen = spread(each.rates(pictures[name]))
            base = base or seen["median"]
            seen["times_first"] = seen["median"] / base
            peak = self.results.get("machine", {}).get("rates", {}).get(ceilings.BF16)
            if multiply_adds and peak:
                seen["share_of_bf16_product"] = seen["median"] * 2 * multiply_adds / peak
            share = f"{seen['share_of_bf16_product']:6.3f} of bf16" if "share_of_bf16_product" in seen else ""
            shown = f"{seen['median']:12,.0f} ({seen['least']:,.0f}, {seen['most']:,.0f})"
            self.say(f"  {name:44}{shown:44}{seen['times_first']:6.2f} x {share}")
            found[name] = seen
        for name, why in left_out.items():
            self.say(f"  {name:44}{why}")
        return found | ({"left_out": left_out} if left_out else {})


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def machine(journal: Journal) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    found |= {"forms": device.choose("auto", PLACE.type).forms(), "reason": device.choose("auto", PLACE.type).reason}
    if PLACE.type == "cuda":
        seen = torch.cuda.get_device_properties(PLACE)
        found |= {"name": seen.name, "memory": seen.total_memory, "multiprocessors": seen.multi_processor_count}
        found |= {"cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
    tops = ceilings.tops(PLACE, ceilings.QUICK if SMALL else ceilings.SIZES[PLACE.type])
    turns, _ = by_turns(tops.works, BUDGET, PLACE, lambda name: None)
    found["rates"] = {name: spread(each.rates(tops.amounts[name]))["median"] for name, each in turns.items()}
    for name, value in found.items():
        journal.say(f"  {name:20}{value}")
    return found


def tests(journal: Journal) -> dict[str, Any]:
    """In a process of their own; Triton compiles a kernel for each shape that is tried, so this has a limit."""
    files = ["tests/test_kernels_sgd.py"] if SMALL else ["tests"]
    workers = "0" if SMALL else "8"
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-m", "cuda", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=240, cwd=Path(__file__).parents[1]
        )
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as stopped:
        out = stopped.stdout or b""
        code, text = -1, out.decode() if isinstance(out, bytes) else out
    (journal.out / "tests.txt").write_text(text, encoding="utf-8")
    last = text.strip().splitlines()[-12:]
    for line in last:
        journal.say(f"  {line}")
    return {"exit_code": code, "end": last}


def kernels_(journal: Journal) -> dict[str, Any]:
    """The cases of kernels.py, on the device or, in small, by the interpreter."""
    with ExitStack() as stack:
        batch = 1024
        if SMALL:
            batch = 1
            sizes = {"GPU": PLACE, "LAYERS": {"1": (8, 7)}, "PARAMETERS": 5000, "SIDE": 32, "CROP": 28, "times": _times}
            for name, value in sizes.items():
                stack.enter_context(mock.patch.object(kernels, name, value))
        copy = journal.results.get("machine", {}).get("rates", {}).get(ceilings.COPY) or kernels.copy_rate(20)
        found = {}
        for case in kernels.cases(batch):
            fast, plain = (kernels.times(form, 5 if SMALL else 20) for form in (case.fast, case.plain))
            middle, other = spread(fast)["median"], spread(plain)["median"]
            share = case.n_bytes / middle / copy
            found[case.name] = {"fast": fast, "plain": plain, "bytes": case.n_bytes, "share_of_copy": share}
            shown = f"{middle * 1e3:10.3f} ms {share:6.2f} of a copy"
            journal.say(f"  {case.name:32}{shown}, plain {other * 1e3:10.3f} ms {other / middle:6.1f} x")
    return found


def _times(function: Work, repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return seconds


def steps(journal: Journal) -> dict[str, Any]:
    found = {}
    for batch in BATCHES:
        journal.say(f"  {MAIN}, {batch} pictures")
        of = forms.case(MAIN, batch, "auto", PLACE.type)
        works = journal.made(one_by_one(of))
        found[str(batch)] = journal.rates(works, dict.fromkeys(works, batch), 3 * multiply_adds(of))
        works.clear()
        clean()
    return found


def one_by_one(of: forms.Case) -> dict[str, Callable[[], Work]]:
    """The training step, first plain, then with one more of our forms each; the last is what `convnet train` does."""

    def ours_under_autocast(**how: bool) -> Work:
        return torchs(of, of.where.take(forms.fresh(of)), torch.channels_last, **how)

    found: dict[str, Callable[[], Work]] = {"plain PyTorch, autocast, NCHW": lambda: forms.plain(of).step}
    if not SMALL:
        fused = lambda: torchs(of, with_blocks(plain_alexnet()), torch.contiguous_format)  # noqa: E731
        found["+ ReLU, norm and pool in one pass"] = fused
    return found | {
        "+ channels-last, dense columns": lambda: unblocked(ours_under_autocast()),
        "+ conv1 by blocks": ours_under_autocast,
        "  the same, torch's fused SGD": lambda: ours_under_autocast(fused=True),
        "  the same, torch's foreach SGD": lambda: ours_under_autocast(foreach=True),
        "+ bf16 copies, our update and dropout": lambda: step_by_step(of),
        "+ no wait for the loss": lambda: whole(of, record=False),
        "+ the step as a CUDA graph": lambda: whole(of, record=True),
        "  the same, cudnn.benchmark": lambda: tuned(whole(of, record=True)),
    }


def step_by_step(of: forms.Case) -> Work:
    """Gradients, a wait for the loss, the update."""
    step, number = EagerSteps(of.where.take(forms.fresh(of)), of.recipe, of.where), 0
    step.net.train()
    images, labels = of.inputs()
    images = images.to(step.input_dtype, memory_format=of.where.memory_format)

    def one() -> float:
        nonlocal number
        number += 1
        loss = step.gradients(images, labels, number).loss.item()
        step.rule.step(of.recipe.lr)
        return float(loss)

    return one


def torchs(of: forms.Case, net: nn.Module, layout: torch.memory_format, **how: bool) -> Work:
    """A step under autocast with torch.optim.SGD, waiting for the loss."""
    net = net.to(PLACE, memory_format=layout).train()  # type: ignore[call-overload]
    rule = torch.optim.SGD(net.parameters(), of.recipe.lr, of.recipe.momentum, weight_decay=of.recipe.decay, **how)
    images, labels = of.inputs()
    images = images.to(memory_format=layout)

    def step() -> float:
        rule.zero_grad()
        with of.where.autocast():
            loss = F.cross_entropy(net(images).float(), labels)
        loss.backward()
        value = loss.item()
        rule.step()
        return float(value)

    return step


class OnePass(nn.Module):
    """ReLU, norm and pooling of the paper."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_pool(x, PAPER)


def with_blocks(net: nn.Module) -> nn.Module:
    """`plain_alexnet` with our kernel where it has ReLU, LocalResponseNorm and MaxPool2d."""
    layers = list(net.children())
    found: list[nn.Module] = []
    while layers:
        if [type(each) for each in layers[:3]] == [nn.ReLU, nn.LocalResponseNorm, nn.MaxPool2d]:
            found.append(OnePass())
            layers = layers[3:]
        else:
            found.append(layers.pop(0))
    return nn.Sequential(*found)


def unblocked(step: Work) -> Work:
    def run() -> object:
        with mock.patch("convnet.kernels.conv1.available", return_value=False):
            return step()

    return run


def tuned(step: Work) -> Work:
    """With cuDNN trying its algorithms at the first calls."""

    def run() -> object:
        with torch.backends.cudnn.flags(benchmark=True, allow_tf32=torch.backends.cudnn.allow_tf32):
            return step()

    return run


def whole(of: forms.Case, record: bool) -> Work:
    """The step of `convnet train`; nobody waits."""
    step = EagerSteps(of.where.take(forms.fresh(of)), of.recipe, of.where)
    step.net.train()
    run, number = GraphStep(step, of.batch, print, record), 0
    images, labels = of.inputs()
    images = images.to(step.input_dtype, memory_format=of.where.memory_format)

    def one() -> object:
        nonlocal number
        number += 1
        return outcome(run, images, labels, number, of.recipe.lr)

    return one


def outcome(run: GraphStep, images: Tensor, labels: Tensor, number: int, lr: float) -> Tensor:
    """Of a step: the loss, and how many pictures were wrong."""
    run.forward_backward(images, labels, number)
    return run.update(lr)


def multiply_adds(of: forms.Case) -> int:
    """Of a picture's forward pass in training."""
    return forms.plain(replace(of, recipe=replace(of.recipe, batch=1))).multiply_adds[0]


def data(journal: Journal) -> dict[str, Any]:
    """AlexNet fed in each way; a pass is some steps, and ends with a wait for the last."""
    batch, n_steps = BATCHES[0], 2 if SMALL else 16
    of = forms.case(MAIN, batch, "auto", PLACE.type)
    with feed.opened(None, of, batch * (1 if SMALL else 4)) as store, ExitStack() as stack:
        if SMALL:
            stack.enter_context(mock.patch.object(device_loader, "free", return_value=1 << 40))
        works = {"one batch again and again": passes(one_batch(of), n_steps)}
        recipe = replace(of.recipe, batch=batch)
        ids = torch.arange(n_steps * batch).numpy() % store.split("train").n
        made = of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb, store.shorter_side)
        for name, asked in {"raw on the device": "raw", "4:2:0 on the device": "420", "copied ahead": "no"}.items():
            loader = Loader(store.split("train"), store.statistics, ids, recipe, made, PLACE, 8, of.where.dtype)
            fed = device_loader.choose(loader, asked, lambda: 0, Notes())  # type: ignore[arg-type]
            works[name] = passes(fed_steps(of, fed), n_steps)
        return journal.rates(works, dict.fromkeys(works, n_steps * batch))


class Notes(Silent):
    """What is chosen is printed."""

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)


def one_batch(of: forms.Case) -> Iterator[object]:
    step = whole(of, record=True)
    while True:
        yield step()


def fed_steps(of: forms.Case, fed: device_loader.Feed) -> Iterator[object]:
    step = EagerSteps(of.where.take(forms.fresh(of)), of.recipe, of.where)
    step.net.train()
    run, number, epoch = GraphStep(step, of.batch, print), 0, 0
    while True:
        epoch += 1
        for batch in fed.epoch(epoch):
            number += 1
            yield outcome(run, batch.images, batch.labels, number, of.recipe.lr)


def passes(steps: Iterator[object], n: int) -> Work:
    def run() -> None:
        for _ in range(n):
            next(steps)

    return run


def nets(journal: Journal) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, batch in {MAIN: BATCHES[0], **NETS}.items():
        with guarded(journal, f"nets, {name}, {batch} pictures"):
            found[name] = net(journal, name, batch)
            journal.results["nets"] = found
    return found


def net(journal: Journal, name: str, batch: int) -> dict[str, Any]:
    """Training (AlexNet's is in `steps`), then inference."""
    of = forms.case(name, batch, "auto", PLACE.type)
    n, training = multiply_adds(of), {}
    if name != MAIN:
        journal.say("  training")
        works = journal.made({"plain": lambda: forms.plain(of).step, "ours": lambda: whole(of, True)})
        training = journal.rates(works, dict.fromkeys(works, batch), 3 * n)
        works.clear()
        clean()
    journal.say("  inference")
    works = journal.made({"plain": lambda: forms.plain(of).forward, "ours": lambda: forms.ours(of).forward})
    return {"training": training, "inference": journal.rates(works, dict.fromkeys(works, batch), n)}


def memory(journal: Journal) -> dict[str, Any]:
    """Peaks of three eager steps and, besides, with the graph, whose memory is its own."""
    found: dict[str, Any] = {}
    for name, batch in TABLE.items():
        if PLACE.type != "cuda":
            journal.say("  needs a GPU")
            return found
        for n in (batch, 128):
            of = forms.case(name, n, "auto", PLACE.type)
            clean()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step = whole(of, record=True)
            for _ in range(WARM_UP):
                step()
            eager = torch.cuda.max_memory_allocated() - before
            for _ in range(3):
                step()
            reserved = torch.cuda.memory_reserved()
            found[f"{name} {n}"] = {"eager": eager, "reserved_with_graph": reserved}
            journal.say(f"  {name:16}{n:6} {eager / 2**30:8.2f} GiB, {reserved / 2**30:8.2f} GiB held with the graph")
            del step
    return found


def curves(journal: Journal) -> dict[str, Any]:
    """Losses on pictures that can be told apart: a prototype for each of 10 classes, in noise."""
    batch = 4 if SMALL else 128
    recipe = replace(load_recipe("alexnet"), net=MAIN, batch=batch, lr=0.01)
    found = {}
    for seed in (0, 1):
        for name in ("fast", "plain"):
            found[f"{name} {seed}"] = curve(replace(recipe, seed=seed), name == "fast")
            last = found[f"{name} {seed}"][-20:]
            journal.say(f"  {name} {seed}: mean loss of the last {len(last)} steps {sum(last) / len(last):.4f}")
            clean()
    for pair in (("fast 0", "plain 0"), ("fast 1", "plain 1"), ("fast 0", "fast 1"), ("plain 0", "plain 1")):
        a, b = (torch.tensor(found[name]).unfold(0, min(20, STEPS), 1).mean(1) for name in pair)
        journal.say(f"  {pair[0]} against {pair[1]}: {float((a - b).abs().mean()):.4f}, smoothed over 20 steps")
    return found


def curve(recipe: Recipe, fast: bool) -> list[float]:
    where = device.choose("auto" if fast else "fp32", PLACE.type)
    net = create_model(recipe.net, num_classes=10, init="paper" if SMALL else "fan-in", seed=recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    side = net.input_size
    prototypes = torch.randn(10, 3, side // 4, side // 4, generator=generator).repeat_interleave(4, 2)
    prototypes = prototypes.repeat_interleave(4, 3).to(PLACE)
    step = EagerSteps(where.take(net), recipe, where)
    step.net.train()
    with ExitStack() as stack:
        if not fast:
            stack.enter_context(mock.patch.object(on_cuda, "serve", return_value=False))
            stack.enter_context(mock.patch("convnet.kernels.cuda.update.available", return_value=False))
        run, losses = GraphStep(step, recipe.batch, print, record=fast), []
        noise = torch.Generator(PLACE).manual_seed(recipe.seed)
        for number in range(STEPS):
            labels = torch.randint(0, 10, (recipe.batch,), generator=generator).to(PLACE)
            images = torch.randn(recipe.batch, 3, side, side, generator=noise, device=PLACE)
            images = (20 * prototypes[labels] + 60 * images).to(step.input_dtype, memory_format=torch.channels_last)
            losses.append(outcome(run, images, labels, number, optim.rate(recipe, 1, []))[0].clone())
    return [float(each) for each in losses]


def compiled(journal: Journal) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, batch in {MAIN: BATCHES[0], **dict(list(NETS.items())[:2])}.items():
        of = forms.case(name, batch, "auto", PLACE.type)
        kinds = {
            "training": {"ours": lambda of=of: whole(of, True), "compiled": lambda of=of: compiled_step(of)},
            "inference": {"ours": lambda of=of: forms.ours(of).forward, "compiled": lambda of=of: compiled_forward(of)},
        }
        for kind, makers in kinds.items():
            journal.say(f"  {name}, {batch} pictures, {kind}")
            works = journal.made(makers)
            found[f"{name}, {kind}"] = journal.rates(works, dict.fromkeys(works, batch))
            works.clear()
            clean()
    return found


def compiled_step(of: forms.Case) -> Work:
    """Forward and backward by torch.compile, which sees the plain forms; our update."""
    step, number = EagerSteps(of.where.take(forms.fresh(of)), of.recipe, of.where), 0
    step.net.train()
    step.net.heads = torch.compile(step.net.heads)  # type: ignore[method-assign]
    images, labels = of.inputs()
    images = images.to(step.input_dtype, memory_format=of.where.memory_format)

    def one() -> None:
        nonlocal number
        step.gradients(images, labels, number)
        step.rule.step(of.recipe.lr)
        number += 1

    return one


def compiled_forward(of: forms.Case) -> Work:
    form = forms.ours(of)
    form.net.eval()
    net, (images, _) = torch.compile(form.net), of.inputs()
    images = images.to(memory_format=of.where.memory_format)

    def one() -> object:
        with torch.no_grad(), of.where.autocast():
            return net(images)

    return one


def clean() -> None:
    gc.collect()
    if PLACE.type == "cuda":
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Journal], dict[str, Any]]] = {
    "machine": machine,
    "tests": tests,
    "kernels": kernels_,
    "steps": steps,
    "data": data,
    "nets": nets,
    "memory": memory,
    "curves": curves,
    "compiled": compiled,
}


@contextmanager
def guarded(journal: Journal, name: str) -> Iterator[None]:
    """Whatever happens in a part is told, and the next one begins."""
    began = time.monotonic()
    journal.say(f"{name}:")
    try:
        yield
    except Exception as error:
        journal.results[f"{name}, error"] = traceback.format_exc()
        journal.say(f"  failed: {type(error).__name__}: {first_line(error)}")
    journal.say(f"  {time.monotonic() - began:.0f} s")
    journal.write()
    clean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=27.0, help="no part begins after these")
    parser.add_argument("--only", default="", help=f"of {','.join(PARTS)}")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if SMALL and "TRITON_INTERPRET" not in os.environ:  # which Triton and kernels/cuda look at when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
    chosen = given.only.split(",") if given.only else list(PARTS)
    if PLACE.type == "cpu" and not given.small:
        sys.exit("no CUDA device; --small tries the script on the CPU")
    torch.manual_seed(0)
    journal = Journal(given.out, time.monotonic() + 60 * given.minutes)
    journal.out.mkdir(parents=True, exist_ok=True)
    journal.results["command"] = sys.argv
    for name in chosen:
        if time.monotonic() > journal.until:
            journal.say(f"{name}: no time left")
            continue
        with guarded(journal, name):
            journal.results[name] = PARTS[name](journal)
    journal.write()


if __name__ == "__main__":
    main()
