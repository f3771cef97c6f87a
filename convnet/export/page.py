"""A page that classifies pictures in the browser, without a network: the net and what runs it are in the file.

The net is an .onnx that takes whole pictures (`onnx_pictures.py`); onnxruntime-web runs it, two files of its package
that the user has: nothing of it comes with convnet.
"""

import base64
import json
from importlib.resources import files as resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError
from convnet.export import onnx
from convnet.io import atomic
from convnet.nets.layers import Net

RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MOST = 128 << 20  # bytes of a net: a browser's texts end at about 512 MiB


def write(net: Net, checkpoint: Checkpoint, path: Path, runtime: Path | None) -> float:
    """Writes the page; gives by how much a probability in onnxruntime differs from torch's at most.

    runtime: a folder with onnxruntime-web's two files.

    Raises: UsageError without them, or for a net that is too large; ConvnetError where onnxruntime differs.
    """
    needed = f"npm pack onnxruntime-web, and give --runtime its folder dist with {' and '.join(RUNTIME)}"
    if runtime is None:
        raise UsageError(f"a page holds what runs its net: {needed}")
    if missing := [name for name in RUNTIME if not (runtime / name).is_file()]:
        raise UsageError(f"{runtime} has no {missing[0]}: {needed}")
    if (n_bytes := sum(each.numel() * each.element_size() for each in net.state_dict().values())) > MOST:
        raise UsageError(f"the net has {n_bytes >> 20} MiB, and a page at most {MOST >> 20}: serve its .onnx as a file")
    with atomic.temporary_folder() as place:
        file = place / "net.onnx"
        difference, _ = onnx.write(net, checkpoint, file, False, "picture")
        content = file.read_bytes()
    template = resources("convnet.export").joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template).render(
        title=f"{checkpoint.recipe.net}: what is it?",
        n=f"{len(checkpoint.classes):,}",
        about=f"The net is of {net.paper}.",
        classes=Markup(json.dumps(checkpoint.classes).replace("<", "\\u003c")),
        net=_text(content),
        runtime=_text((runtime / RUNTIME[0]).read_bytes()),
        wasm=_text((runtime / RUNTIME[1]).read_bytes()),
    )  # fmt: skip
    atomic.write_atomic(path, page.encode())
    return difference


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
