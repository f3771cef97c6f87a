"""A net handed on: a folder that timm, Hugging Face's hub and people read.

    model.safetensors   the tensors, by timm's names where timm has the net, else by ours; `convnet import` reads it
    README.md           the model card: how often it is wrong, with n and interval; its pictures, recipe and digests
    config.json         as timm writes it, last: without it the folder is none

`timm.create_model("local-dir:FOLDER", pretrained=True)` loads a VGG from it.
"""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from convnet import __version__, checkpoint
from convnet.checkpoint import Checkpoint
from convnet.data.preprocess import Preprocessing
from convnet.errors import UsageError
from convnet.evaluation.metrics import interval
from convnet.evaluation.trained_net import checkpoint_at
from convnet.export import Exported, export, named
from convnet.io import atomic, strict_json
from convnet.io.strict_json import Json
from convnet.nets.layers import Net
from convnet.recipe import to_toml

FILES = ("model.safetensors", "README.md", "config.json")
CROPPED = {"crop": "center", "pad": "border", "squash": "squash"}  # what timm calls the ways to a square


def export_hub(source: Path, folder: Path) -> Exported:
    """Writes the net of a checkpoint, or of a run's folder with what it was measured, to `folder`.

    Raises: UsageError for a folder that holds something; DataError when the run's record is damaged; DiskError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and isn't an empty folder; choose another, or remove it")
    file, is_new = checkpoint_at(source), not folder.exists()
    kept, summary = checkpoint.load(file), _summary(source)
    net = checkpoint.rebuild(kept)
    reason = _not_timms(net, kept)
    try:
        written = export(kept, folder / FILES[0], names="convnet" if reason else "timm")
        digests = {FILES[0]: atomic.sha256_file(folder / FILES[0]), file.name: atomic.sha256_file(file)}
        card = "\n".join(_card(net, kept, summary, digests, not reason)) + "\n"
        atomic.write_new(folder / FILES[1], card.encode())
        config = json.dumps(_config(net, kept, not reason), indent=2, ensure_ascii=False) + "\n"
        atomic.write_new(folder / FILES[2], config.encode())
    except BaseException:
        for name in (*FILES, f"{FILES[0]}.mean.npy"):
            with suppress(OSError):
                (folder / name).unlink()
        with suppress(OSError):
            folder.rmdir() if is_new else None
        raise
    loads = f"timm can't load it: {reason}" if reason else f'timm.create_model("local-dir:{folder}", pretrained=True)'
    return Exported((*written.files, folder / FILES[1], folder / FILES[2]), [*written.notes, loads])


def _summary(source: Path) -> Json:
    """What a run that has ended says of its errors; {} where there is none."""
    path = source / "summary.json"
    if not path.is_file():
        return {}
    with atomic.reading(path, "summary", "go on with the run (convnet train --resume)"):
        return strict_json.unseal(atomic.read(path, atomic.TEXT))


def _not_timms(net: Net, kept: Checkpoint) -> str:
    """Why timm can't load the net, or not show it such pictures; "" when it can."""
    try:
        named.in_timms(net, kept)
    except UsageError as error:
        return str(error)
    return "" if _normalize(kept.preprocessing) else "its pixels are less a mean picture, grey, or of a scale below 0"


def _normalize(done: Preprocessing) -> Json:
    """Our pixels as (pixel / 255 - mean) / std; {} where they can't be said so."""
    if done.channels != "rgb" or done.scale <= 0 or (done.mean is not None and done.mean.ndim == 3):
        return {}
    levels = (np.zeros(3) if done.mean is None else done.mean.astype(np.float64)) - done.offset / done.scale
    return {"mean": (levels / 255).tolist(), "std": [1 / (255 * done.scale)] * 3}


def _config(net: Net, kept: Checkpoint, is_timms: bool) -> Json:
    done = kept.preprocessing
    assert done.shorter_side is not None
    share = done.crop / done.shorter_side
    if math.floor(done.crop / share) != done.shorter_side:  # as timm gets it back
        share = done.crop / (done.shorter_side + 0.5)
    theirs = net.layer_names["timm"] if is_timms else {}
    first = next(iter(net.state_dict())).rpartition(".")[0]
    return {
        "architecture": net.torchvision if is_timms else kept.recipe.net,
        "num_classes": len(kept.classes),
        "pretrained_cfg": {
            "input_size": [net.in_channels, done.crop, done.crop],
            "interpolation": "bicubic",
            "crop_pct": share,
            "crop_mode": CROPPED[done.fit],
            **_normalize(done),
            "num_classes": len(kept.classes),
            "first_conv": theirs.get(first, first),
            "classifier": theirs.get(net.last, net.last),
            "label_names": list(kept.classes),
        },
    }


def _card(net: Net, kept: Checkpoint, summary: Json, digests: dict[str, str], is_timms: bool) -> Iterator[str]:
    done, library = kept.preprocessing, "timm" if is_timms else "convnet"
    yield f"---\nlibrary_name: {library}\ntags:\n- image-classification\n---\n"
    yield f"# {net.name}, {len(kept.classes)} classes\n"
    yield f"The net of {net.paper}, by convnet {__version__} (`pip install convnet-classics`).\n"
    yield "## How often it is wrong\n"
    yield from _errors(summary)
    yield "\n## Use\n\n```python"
    if is_timms:
        yield 'import timm\n\nnet = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:OWNER/NAME\n'
    yield f'import convnet\n\nnet = convnet.create_model("{net.name}", pretrained="FOLDER/{FILES[0]}")\n```\n'
    fits = {"crop": "shorter side to", "pad": "padded to a square of", "squash": "squashed to a square of"}
    sides = f"{fits[done.fit]} {done.shorter_side} pixels (bicubic), centre crop of {done.crop}"
    yield f"Pictures: {done.channels}, {sides};"
    mean = "nothing" if done.mean is None else "a mean picture" if done.mean.ndim == 3 else str(done.mean.tolist())
    yield f"grey levels 0 to 255 less {mean}, times {done.scale:.6g}, plus {done.offset:.6g}."
    yield "\n## Digests (sha256)\n\n| of | |\n|---|---|"
    trained_on = {"the store it was trained on": kept.provenance.get("store_sha256")}
    yield from (f"| {name} | `{digest}` |" for name, digest in {**digests, **trained_on}.items() if digest)
    yield "\n## Recipe\n"
    yield from (f"    {line}" for line in to_toml(kept.recipe).splitlines())


def _errors(summary: Json) -> Iterator[str]:
    titles = {"test": "test", "validation": "validation, which chose the net"}
    measured = {title: summary[name] for name, title in titles.items() if summary.get(name)}
    if not measured:
        yield "Nothing is known of it here: it comes from a checkpoint, not from a run that had ended."
        return
    yield "| pictures | n | top-1 error | 95 % interval | top-5 error | 95 % interval |\n|---|---|---|---|---|---|"
    for title, figures in measured.items():
        rates = (figures["top1_error"], figures["top5_error"])
        texts = [f"{rate:.2%} | {' to '.join(f'{end:.2%}' for end in interval(rate, figures['n']))}" for rate in rates]
        yield f"| {title} | {figures['n']:,} | {' | '.join(texts)} |"
    yield f"\nOne centre crop a picture; trained for {summary['epochs']} epochs, {summary['steps']:,} steps."
