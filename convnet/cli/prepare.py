"""The verbs that make and check stores: their arguments and what they print."""

import re
import shlex
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnet.cli.options import (
    AsJson,
    Device,
    Fit,
    LabelColumn,
    Layout,
    Megapixels,
    NameColumn,
    Quiet,
    SplitColumn,
    Workers,
)
from convnet.cli.progress_bar import shown
from convnet.cli.verb import load_net, print_json, print_lines
from convnet.errors import DataError, UsageError

if TYPE_CHECKING:
    from convnet.data.prepare import PartOfStore
    from convnet.data.store import Store

Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 when a picture could not be used.")]


def prepare(
    source: Annotated[
        str, typer.Argument(help="Class folders, a list, a tar or zip, CIFAR, MNIST, ILSVRC, or: digits.")
    ],
    store: Annotated[Path, typer.Argument(help="The folder to make.")],
    size: Annotated[int | None, typer.Option(help="Side of the square, pixels [256; data sets: their own].")] = None,
    encoding: Annotated[str, typer.Option(help="raw: squares, read without decoding; jpeg: full frames.")] = "raw",
    shorter_side: Annotated[int | None, typer.Option(help="Pixels the shorter side is scaled to [size].")] = None,
    fit: Fit = None,
    max_pixels: Megapixels = None,
    workers: Workers = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I, 1 to N, of its shards; merge makes the store.")
    ] = None,
    strict: Strict = False,
    split: Annotated[float, typer.Option(help="Part of each class that goes to --as when no split is given.")] = 0.1,
    into: Annotated[str, typer.Option("--as", help="Where that part goes: val, or test.")] = "val",
    seed: Annotated[int, typer.Option(help="Chooses which pictures go there.")] = 0,
    layout: Layout = None,
    name_column: NameColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    as_json: AsJson = False,
) -> None:
    """Pictures to a store: convnet prepare photos/ stores/photos

    Scales the shorter side to SIZE, cuts out the central square (--fit keeps whole pictures), and takes mean and
    principal components in the same pass. A picture that can't be used is named with its reason. A preparation that
    was stopped goes on where it was.
    """
    from convnet.cli.stores import make_part, make_store, open_for
    from convnet.data.prepare import settings_for
    from convnet.data.resize import encoding_of, fit_of
    from convnet.data.sources import ColumnNames

    columns, own, pixels = ColumnNames(name_column, label_column, split_column), _part(part), _pixels(max_pixels)
    with shown(as_json) as progress:
        listed = open_for(source, store, split, seed, into, layout, columns, own)
        settings = settings_for(listed, size, encoding_of(encoding), shorter_side, pixels, fit_of(fit or "crop"))
        if own is not None:
            made = make_part(listed, store, own, settings, progress, workers)
        else:
            made = make_store(listed, store, settings, progress, workers)
    _tell(made, store, strict, as_json)


def merge(
    store: Annotated[Path, typer.Argument(help="The folder of which every part is made.")],
    workers: Workers = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """A store of its parts, made on one machine or many: convnet merge stores/photos

    Reads every shard first; one that is missing or damaged is named with its part, and nothing is changed then. The
    store is to the last byte that of one process.
    """
    from convnet.cli.stores import say_what_was_odd
    from convnet.data.preparation.commit import merge as merged

    with shown(as_json) as progress:
        made = merged(store, workers=workers, progress=progress)
        say_what_was_odd(made, progress)
    _tell(made, store, strict, as_json)


def check(
    where: Annotated[str, typer.Argument(help="A store, or anything that can be prepared.", metavar="STORE_OR_FOLDER")],
    max_pixels: Megapixels = None,
    workers: Workers = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a folder has errors too.")] = False,
    duplicates: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Copies that were cut or labelled too, by that net.")
    ] = None,
    device: Device = "auto",
    layout: Layout = None,
    quiet: Quiet = False,
    name_column: NameColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    as_json: AsJson = False,
) -> None:
    """Is a store whole, is a folder fit to train on? convnet check photos/

    A store: every byte against its sha256; exit code 3 when one is wrong. Pictures: unreadable ones, small classes,
    classes that are missing in a split, and the same picture twice, worst of all in training and test; exit code 3 when
    the classes can't be trained on, as prepare and train then stop. Near-copies are warnings: docs/retrieval.md.
    """
    from convnet.cli.stores import open_for, refuse_columns
    from convnet.data.check import check_folder, check_store
    from convnet.data.sources import ColumnNames
    from convnet.data.store import is_store

    path, net = Path(where), None if duplicates is None else load_net(duplicates, device)
    stored = where != "digits" and is_store(path)
    with shown(quiet) as progress, tempfile.TemporaryDirectory() as place:
        columns = ColumnNames(name_column, label_column, split_column)
        if stored:
            refuse_columns(where, columns)
            report = check_store(path, progress)
        else:
            source = open_for(where, Path(place) / "store", layout=layout, columns=columns)
            report = check_folder(source, progress, workers, _pixels(max_pixels))
        if net is not None:
            from convnet.retrieval.copies import with_copies

            report = with_copies(report, net, path if stored else source, _pixels(max_pixels), progress)
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines(report.lines())
    if report.unfit or (not report.ok and (stored or strict)):
        raise typer.Exit(DataError.exit_code)


def _pixels(megapixels: float | None) -> int:
    from convnet.data.decode import MAX_PIXELS

    if megapixels is not None and not 0.001 <= megapixels <= 4000:
        raise UsageError(f"--max-pixels {megapixels:g}: must be 0.001 to 4000 megapixels")
    return MAX_PIXELS if megapixels is None else round(megapixels * 1e6)


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise UsageError(f"--part {text}: must be I/N, part I of N with I from 1 to N, as 1/64")


def _tell(made: "PartOfStore | Store", store: Path, strict: bool, as_json: bool) -> None:
    """Prints what was made. Raises: DataError when --strict asks for it."""
    from convnet.data.prepare import PartOfStore

    if isinstance(made, PartOfStore):
        n_failed = made.failed
        if as_json:
            print_json({"store": str(store), **asdict(made)})
        else:
            print_lines(_lines(made, store))
    else:
        n_failed = made.header["counts"]["failed"]
        if as_json:
            print_json({"store": str(store), **{k: made.header[k] for k in ("classes", "splits", "counts")}})
        else:
            line = "seen {seen:,} = used {used:,} + skipped {skipped:,} + failed {failed:,}"
            print_lines([f"{store}: {made.describe()}", line.format(**made.header["counts"])])
    if strict and n_failed:
        where = "convnet merge tells" if isinstance(made, PartOfStore) else f"{store / 'left_out.jsonl'} lists them"
        raise DataError(f"{n_failed} pictures could not be used; {where}")


def _lines(made: "PartOfStore", store: Path) -> list[str]:
    i, n = made.part
    shards = f"{len(made.shards):,} of {made.n_shards:,} shards"
    if made.shards:
        shards += f" ({made.shards[0]} to {made.shards[-1]}), {made.pictures:,} pictures, {made.failed:,} failed"
    return [f"{store}, part {i} of {n}: {shards}", f"when every part is made: convnet merge {shlex.quote(str(store))}"]
