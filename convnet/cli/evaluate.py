"""The verbs that test nets and ask them: their arguments and what they print."""

import csv
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnet.cli.launch import own_device, start
from convnet.cli.options import AsCsv, AsJson, Checkpoint, Device, Precision, Processes, Quiet, Split, computing
from convnet.cli.progress_bar import plain, shown
from convnet.cli.verb import choose_device, left_out, load_net, print_json
from convnet.errors import DataError, UsageError

if TYPE_CHECKING:
    from convnet import device
    from convnet.data import store as stores
    from convnet.data.store import Store
    from convnet.evaluation.ensemble import Row
    from convnet.evaluation.predictions import Member
    from convnet.progress import Progress

Table = Annotated[bool, typer.Option("--table", help="A row for each net, view and scale, and for the ensemble.")]
Weights = Annotated[str | None, typer.Option(help="Each net's weight in the ensemble, as 2,1 [equal].")]
Views = Annotated[
    str, typer.Option(help="single, ten-crop, nine, multi-crop, 144-crop, dense; a+b: their mean; a,b: each.")
]
Scales = Annotated[
    str | None,
    typer.Option(help="Shorter sides, as 256,384,512; or train, vgg-fixed, vgg-jittered [the training's own]."),
]


def evaluate(
    checkpoints_and_store: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT... STORE", help="Checkpoints or runs' folders, then the store.")
    ],
    views: Views = "single",
    scales: Scales = None,
    weights: Weights = None,
    split: Split = None,
    table: Table = False,
    posteriors: Annotated[
        Path | None,
        typer.Option(help="Keep every class probability in this file: for convnet fuse, and to go on after a stop."),
    ] = None,
    batch: Annotated[int, computing(help="Crops in a forward pass; bounds memory.")] = 32,
    restrict: Annotated[
        bool, typer.Option("--restrict", help="Only the outputs of the store's classes, as for ImageNet-A and -R.")
    ] = False,
    device: Device = "auto",
    processes: Processes = 1,
    precision: Precision = "fp32",
    quiet: Quiet = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Tests nets by the papers' protocols: convnet evaluate runs/photos stores/photos --views ten-crop

    Several nets are an ensemble: their probabilities are averaged. Error rates have n and a 95 % interval. A store with
    some of the net's classes is matched by name.
    """
    from convnet.data.store import Store
    from convnet.evaluation.ensemble import rows
    from convnet.evaluation.predictions import ask
    from convnet.io.processes import from_environment, joined
    from convnet.io.signals import on_signals

    _one_of(as_json, as_csv, table)
    *paths, store = checkpoints_and_store
    files = _checkpoints(paths, store, batch)
    shares = _numbers(weights, len(files))
    together, on_device = from_environment(), choose_device(own_device(device), precision)
    if processes > 1 and together.n == 1:
        sys.exit(start(processes, sys.argv[1:], "with --posteriors FILE the same command goes on where it was"))
    with (
        shown(quiet or not together.is_first) as progress,
        on_signals() as stop,
        joined("nccl" if on_device.device.type == "cuda" else "gloo") as together,
    ):
        members, labelled, tested = together.each(
            lambda: _members(files, Store(store, progress), views, scales, on_device, restrict, split, progress)
        )
        predictions = ask(members, tested, batch=batch, file=posteriors, progress=progress, stop=stop,
                          processes=together)  # fmt: skip
        if not together.is_first:
            deque(predictions.blocks(), 0)  # which the first one has too
            return
        table_rows = rows(predictions, shares)
    counts = {name: labelled.header["counts"][name] for name in ("skipped", "failed")}
    _print(table_rows, counts, table, as_json, as_csv)


def _checkpoints(paths: Sequence[Path], store: Path, batch: int) -> list[Path]:
    """The files of checkpoints or runs' folders. Raises: UsageError for these, and for --batch."""
    from convnet.evaluation.trained_net import checkpoints_at

    files = [file for path in paths for file in checkpoints_at(path)]
    if not files:
        raise UsageError(f"{store}: name a checkpoint and then a store")
    if batch < 1:
        raise UsageError(f"--batch {batch}: must be at least 1")
    return files


def fuse(
    files: Annotated[list[Path], typer.Argument(help="What convnet evaluate --posteriors kept.")],
    weights: Weights = None,
    table: Table = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """An ensemble, without running its nets again: convnet fuse a.posteriors b.posteriors --weights 2,1

    Averages the probabilities that several evaluations of the same pictures kept.
    """
    from convnet.evaluation.ensemble import join, rows
    from convnet.evaluation.predictions import load

    _one_of(as_json, as_csv, table)
    with shown(quiet=True) as progress:
        predictions = join([load(path, progress) for path in files])
    _print(rows(predictions, _numbers(weights, len(predictions.members))), None, table, as_json, as_csv)


def predict(
    checkpoint: Checkpoint,
    pictures: Annotated[list[Path], typer.Argument(help="Pictures.")],
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    views: Views = "single",
    scales: Scales = None,
    device: Device = "auto",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Names what is in pictures: convnet predict runs/photos/best.ckpt holiday/*.jpg --top 3

    A picture that can't be read is named on stderr, the others are still answered, and the exit code is 3.
    """
    from convnet.training.metrics_log import inert

    _one_of(as_json, as_csv)
    predictions = load_net(checkpoint, device).predictions(pictures, top, views=views, scales=scales)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        writer.writerow(["picture", "rank", "class", "probability"])
    rows, n_failed = [], 0
    for prediction in predictions:
        name, failed = prediction.name, prediction.failed
        n_failed += failed is not None
        for text in (*([] if failed is None else [failed]), *prediction.notes):
            print(f"convnet: {plain(name)}: {plain(text)}", file=sys.stderr)
        pairs = list(zip(prediction.classes, prediction.probabilities, strict=True))
        if as_json:
            best = [{"class": class_, "probability": p} for class_, p in pairs]
            rows.append({"picture": name, "failed": failed, "classes": best})
        elif as_csv:
            for rank, (class_, p) in enumerate(pairs, 1):
                writer.writerow([inert(name), rank, inert(class_), f"{p:.6f}"])
        elif pairs:
            print(f"{plain(name)}: " + ", ".join(f"{plain(class_)} {p:.1%}" for class_, p in pairs))
    if as_json:
        print_json(rows)
    if n_failed:
        raise DataError(f"{n_failed} of {len(pictures)} pictures could not be read")


def _members(
    files: Sequence[Path],
    store: "Store",
    views: str,
    scales: str | None,
    on_device: "device.Device",
    restrict: bool,
    split: str | None,
    progress: "Progress",
) -> tuple[list["Member"], "Store", "stores.Split"]:
    """The checkpoints and how they look; the store with the labels of their classes, which are one set; and its split.

    Raises: UsageError when the store has a class that a net lacks, or the nets have other classes than each other.
    """
    from convnet.checkpoint import load
    from convnet.evaluation.pictures import seen, split_to_test
    from convnet.evaluation.predictions import Member
    from convnet.evaluation.restrict import restricted
    from convnet.evaluation.trained_net import TrainedNet
    from convnet.evaluation.views import protocol
    from convnet.io.atomic import sha256_file

    members, labelled = [], store
    for i, file in enumerate(files):
        checkpoint = load(file)
        n_all = len(checkpoint.classes)
        if restrict:
            checkpoint = restricted(checkpoint, store.classes)
        if i == 0:
            labelled = store.with_labels_of(checkpoint.classes, str(file))
            _say_which_classes(store, labelled, n_all, progress)
        elif checkpoint.classes != labelled.classes:
            raise UsageError(f"{file} and {files[0]} have other classes, or their order; an ensemble needs one list")
        protocols = tuple(protocol(name.strip(), checkpoint.preprocessing, scales) for name in views.split(","))
        identity = f"{sha256_file(file)} {on_device.dtype}"
        members.append(Member(_name(file), identity, TrainedNet.of(checkpoint, on_device, str(file)), protocols))
    tested = split_to_test(labelled, split)
    if note := seen(tested, [look for member in members for look in member.looks]):
        progress.note(note)
    return members, labelled, tested


def _say_which_classes(store: "Store", labelled: "Store", n_all: int, progress: "Progress") -> None:
    """One line where a store's classes aren't the net's as they are."""
    n = len(store.classes)
    if labelled is not store:
        part = f"{n} of the net's {n_all} classes" if n < n_all else "the net's classes in another order"
        progress.note(f"{store.path} has {part}: labels are matched by name, errors are over all {n_all} outputs")
    elif n < n_all:
        progress.note(f"only the outputs of {store.path}'s {n} of the net's {n_all} classes count (--restrict)")


def _name(file: Path) -> str:
    """What a table calls a checkpoint: its run, unless it is not the run's best."""
    run = file.resolve().parent.name
    return run if file.name == "best.ckpt" else f"{run}/{file.stem}"


def _numbers(text: str | None, n: int) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights {text}: {n} numbers with commas between them") from None


def _one_of(*given: bool) -> None:
    if sum(given) > 1:
        raise UsageError("--json, --csv and --table exclude each other; choose one")


def _print(table: Sequence["Row"], counts: dict[str, int] | None, as_table: bool, as_json: bool, as_csv: bool) -> None:
    """The last row is the whole; `counts` of what the store left out."""
    whole = table[-1]
    if as_json:
        result = whole.scores.to_dict() | {"net": whole.net, "scales": whole.scales, "left_out": counts}
        print_json(result | {"rows": [row.to_dict() for row in table]})
    elif as_csv:
        _print_csv(table)
    elif as_table:
        _print_table(table)
    else:
        _print_scores(whole, counts)


def _print_csv(table: Sequence["Row"]) -> None:
    from convnet.training.metrics_log import inert

    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = ["net", "trained_at", "views", "scales", "split", "n", "top1_error", "top1_low", "top1_high"]
    writer.writerow([*names, "top5_error", "top5_low", "top5_high", "loss"])
    for row in table:
        figures = row.to_dict()
        errors = [
            figures["top1_error"], *figures["top1_interval"], figures["top5_error"], *figures["top5_interval"]
        ]  # fmt: skip
        texts = [inert(text) for text in (row.net, row.trained, row.views, row.scales, row.scores.split)]
        writer.writerow([*texts, figures["n"], *errors, figures["loss"]])


def _print_table(table: Sequence["Row"]) -> None:
    from convnet.evaluation.metrics import sign_test

    head = ("net", "S", "views", "Q", "top-1 error", "95 %", "top-5 error", "95 %", "p")
    tests = ["", *(f"{sign_test(table[0].scores, row.scores)[2]:.4f}" for row in table[1:])]
    lines = [head, *((*_cells(row), p) for row, p in zip(table, tests, strict=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            f"{text:{'<' if i < 4 else '>'}{width}}" for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(padded).rstrip())
    scores = table[-1].scores
    legend = "S: the training's shorter side, Q: the test's; p: paired with the first row"
    print(f"{scores.split}, n {scores.n:,}; {legend}")


def _cells(row: "Row") -> tuple[str, ...]:
    figures = row.to_dict()
    errors = []
    for name in ("top1", "top5"):
        low, high = figures[f"{name}_interval"]
        errors += [f"{figures[f'{name}_error']:.2%}", f"{low:.1%} to {high:.1%}"]
    return (plain(row.net), row.trained, row.views, row.scales, *errors)


def _print_scores(row: "Row", counts: dict[str, int] | None) -> None:
    scores, cells = row.scores, _cells(row)
    missing = left_out(counts) if counts else ""
    what = f"{plain(row.net)}: " if "+" in row.net else ""
    errors = f"top-1 error {cells[4]}, top-5 error {cells[6]}, n {scores.n:,}{missing}"
    print(f"{what}{scores.split}, {row.views}: {errors}")
    print(f"at shorter side {row.scales}; 95 % intervals: top-1 {cells[5]}, top-5 {cells[7]}")
    classes = scores.per_class()
    width = max(len(plain(class_["class"])) for class_ in classes)
    print(f"{'class':<{width}}  {'n':>6}  {'top-1':>8}  {'top-5':>8}")
    for class_ in classes:
        rates = [class_["top1_error"], class_["top5_error"]]
        texts = [f"{rate:8.2%}" if rate is not None else f"{'-':>8}" for rate in rates]
        print(f"{plain(class_['class']):<{width}}  {class_['n']:>6,}  {'  '.join(texts)}")
