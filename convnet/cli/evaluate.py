"""The verbs that test nets and ask them, as `cli.py` offers them: their arguments and what they print."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convnet.cli.progress_bar import plain, shown
from convnet.cli.verb import Place, computing_at, loaded
from convnet.errors import DataError, UsageError

if TYPE_CHECKING:
    from convnet.data.store import Store
    from convnet.device import Device
    from convnet.evaluation.ensemble import Row
    from convnet.evaluation.predictions import Member
    from convnet.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print a table for programs.")]
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
    split: Annotated[str | None, typer.Option(help="train, val or test [test if there is one, else val].")] = None,
    table: Table = False,
    posteriors: Annotated[
        Path | None,
        typer.Option(help="Keep every class probability in this file: for convnet fuse, and to go on after a stop."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Crops in a forward pass; bounds memory.")] = 32,
    restrict: Annotated[
        bool, typer.Option("--restrict", help="Only the outputs of the store's classes, as for ImageNet-A and -R.")
    ] = False,
    place: Place = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16, which is faster and less exact.")] = "fp32",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")] = False,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Tests nets by the papers' protocols: convnet evaluate runs/photos stores/photos --views ten-crop

    Several nets are an ensemble: their probabilities are averaged. Error rates have n and a 95 % interval. A store with
    some of the net's classes is matched by name.
    """
    from convnet.data.store import Store
    from convnet.evaluation.ensemble import rows
    from convnet.evaluation.pictures import seen, split_to_test
    from convnet.evaluation.predictions import ask
    from convnet.evaluation.trained_net import checkpoint_at
    from convnet.io.signals import on_signals

    _one_of(as_json, as_csv, table)
    *paths, store = checkpoints_and_store
    files = [checkpoint_at(path) for path in paths]
    if not files:
        raise UsageError(f"{store}: name a checkpoint and then a store")
    if batch < 1:
        raise UsageError(f"--batch {batch}: must be at least 1")
    shares = _numbers(weights, len(files))
    with shown(quiet) as progress:
        tested, where = Store(store), computing_at(place, _precision(precision))
        members, tested = _members(files, tested, views, scales, where, restrict, progress)
        part = split_to_test(tested, split)
        note = seen(part, [look for member in members for look in member.looks])
        if note:
            progress.note(note)
        with on_signals() as stop:
            found = ask(members, part, batch=batch, keep=posteriors, progress=progress, stop=stop)
            table_rows = rows(found, shares)
    counts = tested.header["counts"]
    left = {"skipped": counts["skipped"], "failed": counts["failed"]}
    _print(table_rows, left, table, as_json, as_csv)


def fuse(
    files: Annotated[list[Path], typer.Argument(help="What convnet evaluate --posteriors kept.")],
    weights: Weights = None,
    table: Table = False,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """An ensemble, without running its nets again: convnet fuse a.posteriors b.posteriors --weights 2,1

    Averages the probabilities that several evaluations of the same pictures kept.
    """
    from convnet.evaluation.ensemble import join, rows
    from convnet.evaluation.predictions import load

    _one_of(as_json, as_csv, table)
    with shown(quiet=True) as progress:
        found = join([load(path, progress) for path in files])
    _print(rows(found, _numbers(weights, len(found.members))), None, table, as_json, as_csv)


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best).")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures.")],
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    views: Annotated[
        str, typer.Option(help="As for evaluate: single, ten-crop, dense, multi-crop+dense ...")
    ] = "single",
    scales: Scales = None,
    place: Place = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table: picture, rank, class, probability.")] = False,
) -> None:
    """Names what is in pictures: convnet predict runs/photos/best.ckpt holiday/*.jpg --top 3

    A picture that can't be read is named on stderr, the others are still answered, and the exit code is 3.
    """
    from convnet.training.metrics_log import inert

    _one_of(as_json, as_csv)
    found = loaded(checkpoint, place).predictions(pictures, top, views=views, scales=scales)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        writer.writerow(["picture", "rank", "class", "probability"])
    rows, failed = [], 0
    for told in found:
        if told.failed is not None:
            failed += 1
            print(f"convnet: {plain(told.name)}: {plain(told.failed)}", file=sys.stderr)  # noqa: T201
        for note in told.notes:
            print(f"convnet: {plain(told.name)}: {plain(note)}", file=sys.stderr)  # noqa: T201
        pairs = list(zip(told.classes, told.probabilities, strict=True))
        if as_json:
            best = [{"class": name, "probability": p} for name, p in pairs]
            rows.append({"picture": told.name, "failed": told.failed, "classes": best})
        elif as_csv:
            for rank, (name, p) in enumerate(pairs, 1):
                writer.writerow([inert(told.name), rank, inert(name), f"{p:.6f}"])
        elif pairs:
            print(f"{plain(told.name)}: " + ", ".join(f"{plain(name)} {p:.1%}" for name, p in pairs))  # noqa: T201
    if as_json:
        print(json.dumps(rows, indent=1))  # noqa: T201
    if failed:
        raise DataError(f"{failed} of {len(pictures)} pictures could not be read")


def _members(
    files: Sequence[Path],
    store: "Store",
    views: str,
    scales: str | None,
    where: "Device",
    restrict: bool,
    progress: "Progress",
) -> tuple[list["Member"], "Store"]:
    """The checkpoints and how they look; and the store with the labels of their classes, which are one set.

    Raises: UsageError when the store has a class that a net lacks, or the nets have other classes than each other.
    """
    from convnet.checkpoint import load
    from convnet.evaluation.predictions import Member
    from convnet.evaluation.restrict import restricted
    from convnet.evaluation.trained_net import TrainedNet
    from convnet.evaluation.views import protocol
    from convnet.io.atomic import sha256_file

    members, labelled = [], store
    for i, file in enumerate(files):
        kept = load(file)
        n_all = len(kept.classes)
        if restrict:
            kept = restricted(kept, store.classes)
        if i == 0:
            labelled = store.with_labels_of(kept.classes, str(file))
            _say_which_classes(store, labelled, n_all, progress)
        elif kept.classes != labelled.classes:
            raise UsageError(f"{file} and {files[0]} have other classes, or their order; an ensemble needs one list")
        looks = tuple(protocol(each.strip(), kept.preprocessing, scales) for each in views.split(","))
        identity = f"{sha256_file(file)} {where.dtype}"
        members.append(Member(_name(file), identity, TrainedNet.of(kept, where, str(file)), looks))
    return members, labelled


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


def _precision(text: str) -> Literal["fp32", "bf16"]:
    known: dict[str, Literal["fp32", "bf16"]] = {"fp32": "fp32", "bf16": "bf16"}
    if text in known:
        return known[text]
    raise UsageError(f"--precision {text}: must be fp32 or bf16")


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


def _print(table: Sequence["Row"], left: dict[str, int] | None, as_table: bool, as_json: bool, as_csv: bool) -> None:
    """The last row is the whole; `left` counts what the store left out."""
    whole = table[-1]
    if as_json:
        result = whole.scores.to_dict() | {"net": whole.net, "scales": whole.scales, "left_out": left}
        print(json.dumps(result | {"rows": [row.to_dict() for row in table]}, indent=1))  # noqa: T201
    elif as_csv:
        _print_csv(table)
    elif as_table:
        _print_table(table)
    else:
        _print_scores(whole, left)


def _print_csv(table: Sequence["Row"]) -> None:
    from convnet.training.metrics_log import inert

    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = ["net", "trained_at", "views", "scales", "split", "n", "top1_error", "top1_low", "top1_high"]
    writer.writerow([*names, "top5_error", "top5_low", "top5_high", "loss"])
    for row in table:
        found = row.to_dict()
        errors = [found["top1_error"], *found["top1_interval"], found["top5_error"], *found["top5_interval"]]
        texts = [inert(text) for text in (row.net, row.trained, row.views, row.scales, row.scores.split)]
        writer.writerow([*texts, found["n"], *errors, found["loss"]])


def _print_table(table: Sequence["Row"]) -> None:
    from convnet.evaluation.metrics import sign_test

    head = ("net", "S", "views", "Q", "top-1 error", "95 %", "top-5 error", "95 %", "p")
    tests = ["", *(f"{sign_test(table[0].scores, row.scores)[2]:.4f}" for row in table[1:])]
    lines = [head, *((*_cells(row), p) for row, p in zip(table, tests, strict=True))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [
            text.ljust(width) if i < 4 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())  # noqa: T201
    scores = table[-1].scores
    legend = "S: the training's shorter side, Q: the test's; p: paired with the first row"
    print(f"{scores.split}, n {scores.n:,}; {legend}")  # noqa: T201


def _cells(row: "Row") -> tuple[str, ...]:
    found = row.to_dict()
    errors = []
    for name in ("top1", "top5"):
        low, high = found[f"{name}_interval"]
        errors += [f"{found[f'{name}_error']:.2%}", f"{low:.1%} to {high:.1%}"]
    return (plain(row.net), row.trained, row.views, row.scales, *errors)


def _print_scores(row: "Row", left: dict[str, int] | None) -> None:
    found, cells = row.scores.to_dict(), _cells(row)
    missing = f" ({left['skipped']:,} skipped, {left['failed']:,} failed in preparing the store)" if left else ""
    what = f"{plain(row.net)}: " if "+" in row.net else ""
    errors = f"top-1 error {cells[4]}, top-5 error {cells[6]}, n {found['n']:,}{missing}"
    print(f"{what}{found['split']}, {row.views}: {errors}")  # noqa: T201
    print(f"at shorter side {row.scales}; 95 % intervals: top-1 {cells[5]}, top-5 {cells[7]}")  # noqa: T201
    width = max(len(plain(each["class"])) for each in found["per_class"])
    print(f"{'class':<{width}}  {'n':>6}  {'top-1':>8}  {'top-5':>8}")  # noqa: T201
    for each in found["per_class"]:
        shares = [f"{each[k]:8.2%}" if each[k] is not None else f"{'-':>8}" for k in ("top1_error", "top5_error")]
        print(f"{plain(each['class']):<{width}}  {each['n']:>6,}  {'  '.join(shares)}")  # noqa: T201
