"""The verbs extract, fit-classifier, index and search: their arguments and what they print."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnet.cli.options import AsJson, Checkpoint, Device, Precision, Quiet, Split, output
from convnet.cli.progress_bar import plain, shown
from convnet.cli.verb import choose_device, print_json, print_lines
from convnet.errors import DataError, UsageError

if TYPE_CHECKING:
    from convnet.retrieval.search import Answer

Views = Annotated[str, typer.Option(help="Averaged over: single, ten-crop, nine, multi-crop, 144-crop, dense.")]
Scales = Annotated[str | None, typer.Option(help="Shorter sides, as 256,384,512 [the training's own].")]
IndexFile = Annotated[Path, typer.Argument(metavar="INDEX", help="The index, a file.")]


def extract(
    checkpoint: Checkpoint,
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="STORE|FOLDER|PICTURE...", help="A store, or any pictures: no classes needed."),
    ],
    stages: Annotated[str | None, typer.Option(help="As fc7,pool5 or conv2.0, or all [before the classes].")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write [features/NET-PICTURES].")] = None,
    kind: Annotated[str, typer.Option("--format", metavar="npy|hdf5|parquet", help="Of the arrays.")] = "npy",
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Of their numbers.")] = "float32",
    normalize: Annotated[bool, typer.Option("--normalize", help="Each picture's of a stage to the length 1.")] = False,
    views: Views = "single",
    scales: Scales = None,
    split: Split = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Writes what a net makes of pictures: convnet extract runs/photos stimuli/ --stages conv5,fc7

    The activations of its stages, as arrays on the disk, with the pictures' names in the same order: docs/features.md.
    A stopped extraction goes on by the same command. Pictures that can't be read are named, and left out.
    """
    from convnet.data.sources.listing import slug
    from convnet.evaluation.trained_net import TrainedNet, checkpoint_at
    from convnet.io.atomic import sha256_file
    from convnet.io.signals import on_signals
    from convnet.retrieval.activations import before_classes, stages_of
    from convnet.retrieval.extract import extract as write
    from convnet.retrieval.pictures import pictures_at

    file = checkpoint_at(checkpoint)
    net = TrainedNet.load(file, choose_device(device, precision))
    chosen = stages_of(net, stages) if stages else [before_classes(net)]
    folder = out or Path("features") / f"{slug(file.resolve().parent)}-{slug(pictures[0])}"
    with shown(quiet) as progress, on_signals() as stop:
        found = write(net, sha256_file(file), pictures_at(pictures, split, progress), folder, chosen, kind=kind,
                      dtype=dtype, normalize=normalize, views=views, scales=scales, progress=progress,
                      stop=stop)  # fmt: skip
    if as_json:
        print_json({"folder": str(folder), **found.meta})
        return
    print_lines([f"{folder}: {len(found.keys):,} pictures"])
    for stage, row in found.meta["arrays"].items():
        shape = " x ".join(f"{side:,}" for side in row["shape"])
        print(plain(f"{stage}: {row['file']}, {dtype} {shape}, {row['what']}"))


def index(
    checkpoint: Checkpoint,
    pictures: Annotated[
        Path, typer.Argument(metavar="STORE|FOLDER", help="Pictures, no classes needed; with --remove those to remove.")
    ],
    index: IndexFile,
    stage: Annotated[str | None, typer.Option(help="Whose activations are compared [the one before classes].")] = None,
    codes: Annotated[int | None, typer.Option(metavar="BITS", help="Binary codes too, as 128.")] = None,
    coder: Annotated[str, typer.Option(metavar="itq|autoencoder|pq|lsh", help="What makes them.")] = "itq",
    codes_only: Annotated[bool, typer.Option("--codes-only", help="Without features: small, not exact.")] = False,
    split: Annotated[str | None, typer.Option(help="Of the store: train, val or test [all].")] = None,
    add: Annotated[bool, typer.Option("--add", help="To an index that is there.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="The pictures of that name, folder or pattern.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Makes pictures searchable: convnet index runs/photos holiday/ holiday.index --codes 128

    A picture's name in the index is its path as it was given, or STORE/KEY; --add leaves those out whose name is there.
    What can't be read is named on stderr. A stopped command goes on; until its end an index stays as it was.
    """
    from convnet.evaluation.trained_net import TrainedNet, checkpoint_at
    from convnet.io.signals import on_signals
    from convnet.retrieval import build

    _check_index(add, remove, stage, codes, codes_only)
    file = checkpoint_at(checkpoint)
    with shown(quiet) as progress, on_signals() as stop:
        if remove:
            changed = build.remove(index, file, str(pictures))
        else:
            net = TrainedNet.load(file, choose_device(device))
            how: dict[str, Any] = {"split": split, "progress": progress, "stop": stop}
            if add:
                changed = build.add(index, net, file, pictures, **how)
            else:
                changed = build.make(index, net, file, pictures, stage, kind=coder if codes else "", n_bits=codes or 0,
                                     codes_only=codes_only, **how)  # fmt: skip
    if as_json:
        print_json({"index": str(index), "n": changed.n, "changed": changed.changed, "there": changed.there,
                    "failed": list(changed.failed)})  # fmt: skip
        return
    there = f" ({changed.there:,} were there)" if changed.there else ""
    failed = f", {len(changed.failed):,} failed" if changed.failed else ""
    what = f"{changed.changed:,} {'removed' if remove else 'added'}{there}{failed}"
    print(plain(f"{index}: {changed.n:,} pictures, {what}; {index.stat().st_size / max(changed.n, 1):,.0f} bytes each"))


def search(
    index: IndexFile,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Pictures, a folder or a store.")],
    top: Annotated[int, typer.Option(help="How many of the nearest.")] = 6,
    by: Annotated[
        str | None,
        typer.Option(metavar="features|codes|both", help="both: features of the nearest codes [features if there]."),
    ] = None,
    cosine: Annotated[bool, typer.Option("--cosine", help="By the angle between features.")] = False,
    html: Annotated[Path | None, output(help="A page with the pictures, .html.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The index's net, if it moved.")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Finds the pictures that are alike: convnet search holiday.index beach.jpg --html beach.html

    Nearest first, with distances: Euclidean, 1 minus the cosine, or bits of the codes. Exact, unless codes choose.
    A picture that can't be read is named on stderr, the others are still answered, and the exit code is 3.
    """
    from convnet.evaluation.trained_net import TrainedNet, checkpoint_at
    from convnet.retrieval.build import sources
    from convnet.retrieval.exact import Measure
    from convnet.retrieval.index import load
    from convnet.retrieval.search import answers, check_search

    if html is not None and html.suffix != ".html":
        raise UsageError(f"--html {html}: a page's name ends in .html")
    opened = load(index)
    how = check_search(opened, top, by)
    file = checkpoint_at(checkpoint or Path(opened.contents.checkpoint))
    opened.check_checkpoint(file)
    net, (asked, above) = TrainedNet.load(file, choose_device(device)), sources(pictures)
    measure: Measure = "cosine" if cosine else "euclidean"
    with shown(quiet) as progress:
        found = list(answers(opened, net, asked, above, top, how, measure, progress))
        if html is not None:
            from convnet.report.sheet import sheet

            what = f"the {measure} distance in {opened.contents.stage}"
            if how != "features" and opened.coder is not None:
                bits = f"codes of {opened.coder.n_bits} bits"
                what = bits if how == "codes" else f"{what}, among those with the nearest {bits}"
            note = f"Nearest of {opened.contents.n:,} pictures by {what}, nearest first."
            if n_gone := sheet(html, index.name, note, found, net.preprocessing):
                progress.warn(f"{n_gone} pictures can't be shown; in their place the page says why")
    _print(found, as_json)
    if html is not None:
        print(f"written: {plain(str(html))}", file=sys.stderr if as_json else sys.stdout)
    if n_failed := sum(answer.failed is not None for answer in found):
        raise DataError(f"{n_failed} of {len(found)} pictures could not be read")


def _check_index(add: bool, remove: bool, stage: str | None, codes: int | None, codes_only: bool) -> None:
    if add and remove:
        raise UsageError("--add and --remove exclude each other; choose one")
    if (add or remove) and (stage or codes is not None or codes_only):
        raise UsageError("--stage and codes are the index's own: leave them out with --add and --remove")
    if codes_only and not codes:
        raise UsageError("--codes-only needs --codes BITS")


def _print(found: "Sequence[Answer]", as_json: bool) -> None:
    for answer in found:
        if answer.failed is not None:
            print(f"convnet: {plain(answer.name)}: {plain(answer.failed)}", file=sys.stderr)
    if as_json:
        print_json([_to_dict(answer) for answer in found])
        return
    for answer in found:
        if answer.failed is None:
            print_lines([f"{answer.name}:"])
            width = max(len(each.text) for each in answer.nearest)
            print_lines(
                f"  {each.text:>{width}}  {each.name}{each.label and f'  {each.label}'}" for each in answer.nearest
            )


def _to_dict(answer: "Answer") -> dict[str, Any]:
    nearest = [{"name": each.name, "class": each.label or None, "distance": each.distance} for each in answer.nearest]
    return {"picture": answer.name, "failed": answer.failed, "nearest": nearest}


def fit_classifier(
    checkpoints_and_store: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT... STORE", help="One net or several; a store, whose classes it tells apart."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
    stage: Annotated[
        str | None, typer.Option(help="Whose features, as pool5, or of each net: pool5,fc7 [before the classes].")
    ] = None,
    kind: Annotated[str, typer.Option(metavar="svm|logistic", help="A linear SVM, or logistic regression.")] = "svm",
    split: Annotated[str, typer.Option(help="Of the store, to fit on.")] = "train",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A classifier of few photos, in minutes: convnet fit-classifier alexnet.ckpt stores/photos --out mine.ckpt

    A linear classifier on the features of one net or several, each picture's of length 1; C by cross-validation.
    Predict, evaluate and export take the result as any checkpoint; an SVM's probabilities order the classes, and are no
    frequencies.
    """
    from convnet import checkpoint as checkpoints
    from convnet.data.store import is_store
    from convnet.evaluation.trained_net import TrainedNet, checkpoint_at
    from convnet.io.signals import on_signals
    from convnet.retrieval.activations import before_classes, stages_of
    from convnet.retrieval.classifier import fit_classifier as fit
    from convnet.retrieval.pictures import pictures_at

    *paths, store = checkpoints_and_store
    if not paths:
        raise UsageError(f"fit-classifier takes a net and a store, and was given {store} only: CHECKPOINT... STORE")
    if out.exists():
        raise UsageError(f"{out} exists; choose another name, or remove it")
    if not is_store(store):
        raise UsageError(f"{store} is not a store (it has no store.json); convnet prepare makes one of labelled photos")
    where, stages = choose_device(device), stage.split(",") if stage else []
    kept = [checkpoints.load(checkpoint_at(path)) for path in paths]
    nets = [TrainedNet.of(each, where, str(path)) for each, path in zip(kept, paths, strict=True)]
    if len(stages) not in (0, 1, len(nets)):
        raise UsageError(f"--stage {stage}: {len(stages)} stages for {len(nets)} nets; name one, or one for each")
    named = stages * len(nets) if len(stages) == 1 else stages or map(before_classes, nets)
    chosen = [name for net, name in zip(nets, named, strict=True) for name in stages_of(net, name)]
    with shown(quiet) as progress, on_signals() as stop:
        found = fit(list(zip(kept, chosen, strict=True)), where, pictures_at([store], split, progress), kind,
                    progress=progress, stop=stop)  # fmt: skip
    checkpoints.save(out, found.checkpoint)
    if as_json:
        print_json({"net": str(out), **found.checkpoint.provenance["fitted"]})
        return
    print_lines([f"C {c:g}: {share:.2%} right in cross-validation" for c, share in found.right.items()])
    sizes = f"{found.n:,} pictures, {len(found.checkpoint.classes)} classes"
    print(plain(f"{kind} on {', '.join(chosen)}, {sizes}; C {found.c:g}: {out}"))
