"""The verbs that look at the machine: doctor and benchmark; their arguments and what they print."""

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from convnet.cli.progress_bar import columns, shown
from convnet.cli.progress_bar import plain as plain_text
from convnet.cli.verb import Place
from convnet.errors import UsageError

if TYPE_CHECKING:
    from convnet.benchmark.forms import Precision

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")]


def doctor(
    folder: Annotated[Path, typer.Argument(help="Whose disk is measured.")] = Path(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What is on this machine, what is chosen, what would make it faster: convnet doctor

    Devices, processor, memory, threads, compilers, packages, and the rates of the disk (at most 256 MiB are written,
    read and gone). Exit code 0 whatever is missing.
    """
    from convnet import threads
    from convnet.benchmark.doctor import examine, lines

    threads.settle()
    with shown(quiet or as_json) as progress:
        told = examine(folder, progress)
    if as_json:
        print(json.dumps(told, indent=1))  # noqa: T201
        return
    for line in lines(told, columns()):
        print(plain_text(line))  # noqa: T201


def benchmark(
    net: Annotated[
        list[str] | None,
        typer.Option(help="A net, vgg* or main: alexnet zfnet nin_imagenet googlenet vgg_a vgg_d."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures in a step [64, on CUDA 1024; VGG a quarter].")] = None,
    repeats: Annotated[int, typer.Option(help="Turns of everything, at least 5.")] = 5,
    precision: Annotated[str, typer.Option(help="Of convnet: auto, fp32 or bf16.")] = "auto",
    place: Place = "auto",
    store: Annotated[
        Path | None, typer.Option(help="What the loader reads [a raw store made for it, then gone].")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Plain PyTorch and other libraries too.")] = True,
    memory: Annotated[
        bool, typer.Option("--memory", help="The CPU's peak memory too, in fresh processes; on CUDA always.")
    ] = False,
    limit: Annotated[float, typer.Option(help="Seconds for all turns of one form; what takes longer is told.")] = 120.0,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to try it; the rates say nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="The picture to write, .png or .svg [benchmark.png].")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How fast is this machine with these nets? convnet benchmark --net alexnet

    Training and inference, against plain PyTorch and this machine's own matrix products; the loader; everything
    together; by turns in one run. Without --net: on CUDA main, otherwise alexnet and googlenet (some minutes).
    """
    from convnet import threads
    from convnet.benchmark import Asked
    from convnet.benchmark import benchmark as measure
    from convnet.benchmark.drawn import benchmark_figure
    from convnet.benchmark.table import table_lines
    from convnet.benchmark.turns import Budget
    from convnet.visualize.plot import check_suffix, save

    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {precision}: must be auto, fp32 or bf16")
    picture = out or Path("benchmark.png")
    check_suffix(picture)
    budget = Budget(repeats, least=0.0, limit=limit) if quick else Budget(repeats, limit=limit)
    threads.settle()
    nets = tuple(net or ())
    asked = Asked(nets, batch, cast("Precision", precision), budget, plain, memory, store, quick, place)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as Ctrl-C does: the store is gone
    try:
        with shown(quiet) as progress:
            result = measure(asked, progress, shlex.join(["convnet", *sys.argv[1:]]))
    finally:
        signal.signal(signal.SIGTERM, before)
    save(benchmark_figure(result), picture)
    if as_json:
        print(json.dumps(result | {"picture": str(picture)}, indent=1))  # noqa: T201
        return
    for line in table_lines(result):
        print(plain_text(line))  # noqa: T201
    print(f"written: {plain_text(str(picture))}")  # noqa: T201
