"""What is measured is what is said: the plain form is the same net, shares and rates follow from the seconds told."""

import importlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import Run
from convnet import benchmark as bench
from convnet.benchmark import Options, ceilings, figure, forms, loader, memory, table, timing
from convnet.benchmark.forms import COMPILED, OURS, PLAIN
from convnet.benchmark.plain import Plain, grouped, plain_alexnet
from convnet.benchmark.timing import Budget, Turns, by_turns, spread
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.kernels.ops import layer_by_layer
from convnet.nets import create_model, evaluating
from convnet.nets.convolutions import Columns
from convnet.nets.describe import multiply_adds
from convnet.nets.layers import Net

CPU = torch.device("cpu")

# turns


def test_works_come_by_turns_and_warm_up_does_not_count() -> None:
    order: list[str] = []
    told: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    found, left_out = by_turns(works, Budget(repeats=6, least=0.0), CPU, told.append)
    assert "".join(order) == "aabb" + "ab" * 6
    assert told == order
    assert {name: (len(each.seconds), each.calls) for name, each in found.items()} == {"a": (6, 1), "b": (6, 1)}
    assert left_out == {}


def test_short_work_is_called_until_a_turn_is_long_enough() -> None:
    n = 0

    def work() -> None:
        nonlocal n
        n += 1

    found, _ = by_turns({"work": work}, Budget(least=1e-4), CPU, lambda name: None)
    assert found["work"].calls > 1
    assert n == timing.WARM_UP + 5 * found["work"].calls


def test_what_is_too_slow_or_too_large_is_told_and_the_rest_measured() -> None:
    def hungry() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: ...")

    def no_room() -> None:
        raise MemoryError

    works = {"slow": lambda: sum(range(100000)), "hungry": hungry, "no room": no_room, "good": lambda: None}
    found, left_out = by_turns(works, Budget(limit=1e-4), CPU, lambda name: None)
    assert list(found) == ["good"]
    assert left_out["slow"].endswith("and 5 would take longer than the 0.0001 s of --limit")
    assert left_out["hungry"] == left_out["no room"] == "the memory does not suffice; try a smaller --batch"


def test_other_errors_are_errors() -> None:
    def wrong() -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        by_turns({"wrong": wrong}, Budget(), CPU, lambda name: None)


def test_rates_of_a_turn() -> None:
    assert Turns((2.0, 4.0), 3).rates(10.0) == [15.0, 7.5]
    told = Turns((2.0, 4.0, 8.0), 3).to_dict(64)
    assert told["seconds"] == [2.0, 4.0, 8.0]
    assert told["rate"] == {"median": 48.0, "least": 24.0, "most": 96.0, "n": 3}


def test_batches_of_a_pass_fit_the_limit() -> None:
    net = {"net": "vgg_d", "forms": [{"form": OURS, "training": {"seconds": [8.0, 6.0], "calls": 2}}]}
    assert bench._batches(net, Budget(limit=1000.0), 4) == (4, "")
    assert bench._batches(net, Budget(limit=50.0), 4) == (3, "")  # of 3 s, in 5 turns
    assert bench._batches(net, Budget(limit=25.0), 4) == (0, timing.too_slow(6.0, Budget(limit=25.0)))
    assert bench._batches({"net": "vgg_d", "forms": []}, Budget(), 4) == (0, "vgg_d's training was not measured")


# the plain form


@pytest.mark.parametrize("name", ["alexnet_2012", "caffenet", "googlenet", "cifar_11"])
def test_plain_form_is_the_same_net(name: str) -> None:
    net = create_model(name, seed=0)
    images = torch.randn(1, net.in_channels, net.input_size, net.input_size) * 60
    with torch.no_grad(), evaluating(net):
        expected = net(images)
        made = grouped(net)
        with Plain():
            found = made(images)
    assert not any(isinstance(module, Columns) for module in made.modules())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_plain_alexnet_is_alexnet() -> None:
    net = create_model("alexnet", seed=0).eval()
    made = plain_alexnet().eval()
    weights = [each.detach() for each in grouped(net).parameters()]
    for mine, given in zip(made.parameters(), weights, strict=True):
        mine.data.copy_(given)
    images = torch.randn(1, 3, 224, 224) * 60
    with torch.no_grad():
        expected = net(images)
        torch.testing.assert_close(made(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_plain_form_runs_nothing_of_ours() -> None:
    with Plain():
        assert layer_by_layer(torch.zeros(1))  # what every kernel asks first
    form = forms.plain(forms.case_of("cifar_11", 2, "fp32"))
    assert ours_in(form.net, nullcontext) != set()  # so the next line can fail
    assert ours_in(form.net, Plain) == set()
    assert math.isfinite(form.step())
    assert form.forward().shape == (2, 10)


def ours_in(net: nn.Module, mode: Any) -> set[str]:
    """The differentiable functions in the graph of the net's logits that are written in Python, as ours are."""
    assert isinstance(net, Net)
    size = (2, net.in_channels, net.input_size, net.input_size)
    with mode():
        logits = net(torch.randn(size))
    found, todo = set(), [logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo.extend(each for each, _ in node.next_functions)
    return {type(node).__name__ for node in found if hasattr(node, "_forward_cls")}


# counts and memory


def test_multiply_adds_of_the_forms() -> None:
    of = forms.case_of("googlenet", 2, "fp32")
    net = create_model("googlenet", seed=0)
    training, inference = forms._counts(net, of, Plain)
    assert inference == multiply_adds(net)
    assert training == inference + sum(heads_of_googlenet())
    assert bench.share(50.0, 2 * 3 * 1_000_000, 1e9) == pytest.approx(0.3)
    assert bench.share(50.0, 6, None) is None


def heads_of_googlenet() -> Iterator[int]:
    """Section 5: 5x5 average pooling to 4 x 4, 128 1x1 convolutions, 1,024 and 1,000 units."""
    for maps in (512, 528):
        yield 4 * 4 * maps * 128 + 4 * 4 * 128 * 1024 + 1024 * 1000


def test_memory_that_a_net_needs_at_least() -> None:
    one, two, three = (memory.needed(forms.case_of("alexnet", n, "fp32"), torch.float32) for n in (1, 2, 3))
    assert two - one == pytest.approx(three - two, abs=2)
    assert one > 1.2 * 60_965_224 * 12
    narrow = memory.needed(forms.case_of("alexnet", 3, "fp32"), torch.bfloat16)
    assert 0 < narrow - 1.2 * 60_965_224 * 12 < three - 1.2 * 60_965_224 * 12
    conv1, pixels = 2 * 96 * 55 * 55 * 4, 224 * 224 * 3 * 4
    assert two - one > conv1 + pixels  # backward needs both, and what norm1 saw


def test_a_net_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    of = forms.case_of("lenet5", 4, "fp32")
    assert memory.does_not_fit(of, torch.float32) == ""
    monkeypatch.setattr(memory, "free", lambda place: 1000)
    text = memory.does_not_fit(of, torch.float32)
    assert text == "its training needs about 0.0 GiB and 0.0 GiB are free; try a smaller --batch"
    monkeypatch.setattr(memory, "free", lambda place: None)
    assert memory.does_not_fit(of, torch.float32) == ""


def test_peak_of_a_fresh_process() -> None:
    if sys.platform == "win32":
        pytest.skip("Windows doesn't tell it")
    found, why = memory.on_cpu(OURS, forms.case_of("lenet5", 4, "fp32"))
    assert why == ""
    assert found is not None and 0 < found < 1 << 30  # noqa: PT018
    nothing, why = memory.on_cpu("nobody's net", forms.case_of("lenet5", 4, "fp32"))
    assert nothing is None
    assert "the process ended with code 1: ModuleNotFoundError" in why


# other libraries


def test_libraries_that_are_absent_or_broken_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torchvision": None, "timm": None}
    monkeypatch.setattr(forms, "version", installed.get)
    assert forms.others("vgg16") == (None, "torchvision is not installed; timm is not installed")
    assert forms.others("alexnet") == (None, "torchvision is not installed; timm has no such net")
    assert forms.others("nin_small") == (None, "torchvision and timm have no such net")
    installed["torchvision"] = "0.30"

    def broken(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(importlib, "import_module", broken)
    name, why = forms.others("googlenet")
    assert name is None
    assert why == ("torchvision can't be imported (operator torchvision::nms does not exist); timm has no such net")


class Tiny(nn.Module):
    """Stands for a library's net: with heads as a tuple in training, as torchvision's GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1000)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.fc(images.mean((2, 3)))
        return (logits, logits) if self.training else logits


def test_a_librarys_net_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def googlenet(weights: None = None, **kwargs: Any) -> Tiny:
        made.append({"weights": weights, **kwargs})
        return Tiny()

    library = ModuleType("torchvision.models")
    library.googlenet = googlenet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", library)
    monkeypatch.setattr(forms, "version", lambda name: "0.30" if name == "torchvision" else None)
    assert forms.others("googlenet_bn") == ("torchvision googlenet", "")
    form = forms.build("torchvision googlenet", forms.case_of("googlenet", 2, "fp32"))
    assert made == [{"weights": None, "init_weights": False}]
    assert (form.name, form.multiply_adds) == ("torchvision googlenet", (3000, 3000))
    first = form.net.train().state_dict()["fc.weight"].clone()
    loss = form.step()
    assert loss == pytest.approx(1.3 * math.log(1000), rel=0.2)
    assert not torch.equal(first, form.net.state_dict()["fc.weight"])
    form.net.eval()
    assert form.forward().shape == (2, 1000)


def test_ours_by_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a torch.compile that changes nothing: what is compiled is what training and inference call."""
    compiled: list[str] = []

    def compile_nothing(function: Callable[..., object], **_: object) -> Callable[..., object]:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    form = forms.build(COMPILED, forms.case_of("cifar_11", 2, "fp32"))
    assert (form.name, compiled) == (COMPILED, ["_call_impl", "heads"])
    assert math.isfinite(form.step())
    assert form.forward().shape == (2, 10)


def test_what_torch_cannot_compile_is_left_out() -> None:
    def fail() -> float:
        raise TypeError("no backend\nand more")

    form = forms.build(PLAIN, forms.case_of("lenet5", 2, "fp32"))
    made, left_out = {OURS: form, COMPILED: replace(form, step=fail)}, dict[str, str]()
    bench._warm_up(made, left_out)
    assert (list(made), left_out) == ([OURS], {COMPILED: "no backend"})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    options = Options(nets=("cifar_11",), budget=Budget(least=0.0), quick=True, device="cuda")
    result = bench.benchmark(options)
    assert {OURS, PLAIN} <= {form["form"] for form in result["nets"][0]["forms"]}
    assert {loader.PIPELINE, *loader.PLACES} <= result["feed"]["parts"].keys()


# the options


def test_names_of_nets() -> None:
    assert Options().names("cpu") == ["alexnet", "googlenet"]
    assert Options().names("cuda") == list(bench.MAIN)
    assert Options(nets=("lenet5", "cifar_1*", "lenet5")).names("cpu") == ["lenet5", "cifar_11", "cifar_13", "cifar_18"]
    assert Options(nets=("main",)).names("cpu") == list(bench.MAIN)
    assert Options().batch_of("vgg_d", "cuda") == 256
    assert Options().batch_of("alexnet", "cuda") == 1024
    with pytest.raises(UsageError, match="unknown net 'alexnt': did you mean 'alexnet'"):
        Options(nets=("alexnt",)).names("cpu")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--net", "alexnt"], "unknown net 'alexnt': did you mean 'alexnet'?"),
        (["--repeats", 4], "--repeats 4: must be at least 5, for a median that means it"),
        (["--batch", 0], "--batch 0: must be at least 1"),
        (["--precision", "int8"], "--precision int8: must be auto, fp32 or bf16"),
        (["--out", "picture.pdf"], "picture.pdf: a picture's name ends in .png or .svg"),
    ],
)
def test_errors_in_what_is_asked(run: Run, arguments: list[object], text: str) -> None:
    code, out, err = run("benchmark", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"convnet: {text}")
    assert list(Path().iterdir()) == []


def test_a_store_of_another_size(run: Run, photos: Store) -> None:
    code, _, err = run("benchmark", "--quick", "--net", "lenet5", "--store", photos.path)
    assert code == 2
    assert "holds pictures of 32 pixels, recipe lenet5 wants 28; name a net that fits first" in err


# the command


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    asked = Options(nets=("lenet5", "cifar_11"), precision="fp32", budget=Budget(least=0.0), quick=True)
    return bench.benchmark(asked, command="convnet benchmark")


def test_every_figure_follows_from_the_seconds(measured: dict[str, Any]) -> None:
    assert [row["net"] for row in measured["nets"]] == ["lenet5", "cifar_11"]
    for row in measured["nets"]:
        assert [form["form"] for form in row["forms"]] == [OURS, PLAIN]
        plain = row["forms"][1]
        for form in row["forms"]:
            for what, passes in (("training", 3), ("inference", 1)):
                told = form[what]
                assert len(told["seconds"]) == told["rate"]["n"] == 5
                median = statistics.median(row["batch"] * told["calls"] / each for each in told["seconds"])
                assert told["rate"]["median"] == pytest.approx(median)
                assert told["times_plain"] == pytest.approx(median / plain[what]["rate"]["median"])
                flops = row[f"ceiling_{what}"]["flops"]
                assert told["share"] == pytest.approx(median * passes * 2 * form["multiply_adds"][what] / flops)
    parts = measured["feed"]["parts"]
    assert list(parts) == [loader.FIRST, loader.LATER, loader.COMPUTE, loader.PIPELINE]
    pipeline, compute = (parts[name]["rate"]["median"] for name in (loader.PIPELINE, loader.COMPUTE))
    assert measured["feed"]["pipeline_share"] == pytest.approx(pipeline / compute)
    assert measured["ceilings"][ceilings.FP32]["n"] == 2 * 2 * 5  # nets, modes, turns


def test_result_is_json_and_tells_where_it_is_from(measured: dict[str, Any]) -> None:
    again = json.loads(json.dumps(measured, allow_nan=False))
    assert again["machine"]["versions"]["torch"] == torch.__version__
    assert (again["command"], again["budget"]["repeats"], again["quick"]) == ("convnet benchmark", 5, True)


def test_table(measured: dict[str, Any]) -> None:
    lines = list(table.table_lines(measured))
    assert max(map(len, lines)) <= table.WIDTH
    text = " ".join(" ".join(lines).split())
    assert "lenet5, batch 4, 0.4157 M multiply-adds a picture" in text
    assert "--quick: these rates say nothing" in text
    assert "lenet5, cifar_11: other libraries: torchvision and timm have no such net" in text
    assert f"torch {torch.__version__}" in text


def test_picture_has_a_bar_for_each_share(measured: dict[str, Any]) -> None:
    made = figure.benchmark_figure(measured)
    for axes, what in zip(made.axes, bench.WHAT, strict=True):
        drawn_shares = sorted(bar.get_width() for bar in axes.patches if bar.get_width())
        told = sorted(form[what]["share"] for row in measured["nets"] for form in row["forms"])
        assert drawn_shares == pytest.approx(told)
        assert axes.get_title(loc="left") == f"{what}, pictures/s"


def test_what_was_left_out_stands_in_table_and_picture(measured: dict[str, Any]) -> None:
    result = json.loads(json.dumps(measured))
    result["nets"][0]["forms"][1]["training"] = None
    result["nets"][0]["left_out"] = {"plain PyTorch, training": timing.too_slow(40.0, Budget())}
    result["nets"][1]["forms"] = []
    result["nets"][1]["left_out"] = {"convnet": "its training needs about 9.0 GiB and 8.0 GiB are free"}
    text = " ".join(" ".join(table.table_lines(result)).split())
    assert "lenet5: plain PyTorch, training: one call takes 40.0 s" in text
    assert "plain PyTorch training not measured inference" in text
    assert "cifar_11: convnet: its training needs about 9.0 GiB" in text
    made = figure.benchmark_figure(result)
    assert [each.get_text() for each in made.axes[0].texts].count("not measured") == 1


def test_a_net_that_does_not_fit_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "does_not_fit", lambda of, dtype: "too large")
    asked = Options(nets=("lenet5",), budget=Budget(least=0.0), quick=True, plain=False)
    result = bench.benchmark(asked)
    assert result["nets"][0]["left_out"] == {OURS: "too large"}
    assert result["ceilings"] == {}
    assert list(result["feed"]["parts"]) == [loader.FIRST, loader.LATER]
    assert result["feed"]["left_out"] == {loader.PIPELINE: "lenet5's training was not measured"}
    assert [axes.patches[:] for axes in figure.benchmark_figure(result).axes] == [[], []]
    assert "lenet5: convnet: too large" in " ".join(" ".join(table.table_lines(result)).split())


def test_command_ends_with_table_and_picture(run: Run, digits: Store) -> None:
    code, out, err = run("benchmark", "--quick", "--net", "lenet5", "--store", digits.path, "--no-plain", "-q")
    assert (code, err) == (0, "")
    assert out.endswith("written: benchmark.png\n")
    assert Path("benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert "the store given: 10 classes, raw 28 x 28, train 1,259" in " ".join(out.split())
    assert "plain" not in out.partition("loader")[0].replace("x plain", "")


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made within the test."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_command_as_json(run: Run, scratch: Path) -> None:
    code, out, _ = run("benchmark", "--quick", "--net", "lenet5", "--no-plain", "--json", "--out", "p.svg")
    assert code == 0
    told = json.loads(out)
    assert told["picture"] == "p.svg"
    assert Path("p.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert told["nets"][0]["forms"][0]["training"]["times_plain"] is None
    assert told["feed"]["made"]
    assert list(scratch.iterdir()) == []  # where the store was


def test_ctrl_c_leaves_nothing(run: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        assert len(list(scratch.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "by_turns", stopped)
    code, out, err = run("benchmark", "--quick", "--net", "lenet5", "-q")
    assert (code, out) == (130, "")
    assert err.startswith("convnet: stopped")
    assert list(Path().iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_spread() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0]) == {"median": 2.5, "least": 1.0, "most": 4.0, "n": 4}
