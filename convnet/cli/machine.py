"""The verbs that look at the machine: doctor and benchmark; their arguments and what they print."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from convnet.cli.options import AsJson, Device, Precision, Quiet, computing, output
from convnet.cli.progress_bar import columns, shown
from convnet.cli.verb import print_json, print_lines
from convnet.errors import UsageError

if TYPE_CHECKING:
    from convnet.benchmark import forms


def doctor(
    folder: Annotated[Path, typer.Argument(help="Whose disk is measured.")] = Path(),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What is on this machine, what is chosen, what would make it faster: convnet doctor

    Devices, processor, memory, threads, compilers, packages, and the rates of the disk (at most 256 MiB are written,
    read and gone). Exit code 0 whatever is missing.
    """
    from convnet import threads
    from convnet.benchmark.doctor import examine, lines

    threads.configure()
    with shown(quiet or as_json) as progress:
        examined = examine(folder, progress)
    if as_json:
        print_json(examined)
    else:
        print_lines(lines(examined, columns()))


def benchmark(
    net: Annotated[
        list[str] | None,
        typer.Option(help="A net, vgg* or main: alexnet zfnet nin_imagenet googlenet vgg_a vgg_d."),
    ] = None,
    batch: Annotated[
        int | None,
        computing(help="Pictures in a step [64, on CUDA 1024; VGG a quarter]."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Turns of everything, at least 5.")] = 5,
    precision: Precision = "auto",
    device: Device = "auto",
    store: Annotated[
        Path | None, typer.Option(help="What the loader reads [a raw store made for it, then gone].")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Plain PyTorch and other libraries too.")] = True,
    memory: Annotated[
        bool, typer.Option("--memory", help="The CPU's peak memory too, in fresh processes; on CUDA always.")
    ] = False,
    limit: Annotated[float, typer.Option(help="Seconds for all turns of one form; what takes longer is told.")] = 120.0,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to try it; the rates say nothing.")] = False,
    out: Annotated[Path, output(help="The picture to write, .png or .svg.")] = Path("benchmark.png"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """How fast is this machine with these nets? convnet benchmark --net alexnet

    Training and inference, against plain PyTorch and this machine's own matrix products; the loader; everything
    together; by turns in one run. Without --net: on CUDA main, otherwise alexnet and googlenet (some minutes).
    """
    from convnet import threads
    from convnet.benchmark import Options
    from convnet.benchmark import benchmark as measure
    from convnet.benchmark.figure import benchmark_figure
    from convnet.benchmark.table import table_lines
    from convnet.benchmark.timing import Budget
    from convnet.visualize.plot import check_suffix, save

    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {precision}: must be auto, fp32 or bf16")
    check_suffix(out)
    budget = Budget(repeats, least=0.0, limit=limit) if quick else Budget(repeats, limit=limit)
    threads.configure()
    options = Options(
        tuple(net or ()), batch, cast("forms.Precision", precision), budget, plain, memory, store, quick, device
    )
    with shown(quiet) as progress:
        result = measure(options, progress, shlex.join(["convnet", *sys.argv[1:]]))
    save(benchmark_figure(result), out)
    if as_json:
        print_json(result | {"picture": str(out)})
    else:
        print_lines([*table_lines(result), f"written: {out}"])
