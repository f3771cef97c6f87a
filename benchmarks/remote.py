"""How fast is training from a server 50 ms away, against the same store in a folder?

    python benchmarks/remote.py [PICTURES] [MILLISECONDS]

A local HTTP server that answers each request MILLISECONDS late serves a store of noise of 256 x 256. By turns, in one
run: the loader alone and AlexNet's training, from the folder and from the URL; from the URL in the first pass (nothing
is in the cache) and in a later one. Medians of ROUNDS, in pictures a second. The server's work is this machine's too.
"""

import asyncio
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from convnet import device
from convnet.benchmark.loader import random_pictures
from convnet.data import preprocess
from convnet.data.loader import Loader
from convnet.data.prepare import prepare
from convnet.data.store import Store
from convnet.io import remote
from convnet.recipe import load_recipe
from convnet.training.run import fresh_net
from convnet.training.step import EagerSteps

ROUNDS, STEPS = 3, 3


@contextmanager
def late(folder: Path, seconds: float) -> Iterator[str]:
    """A server of `folder` in a thread of its own, whose every answer comes so late; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            name = head.split(b" ", 2)[1].decode().lstrip("/")
            data, part = (folder / name), re.search(rb"[Rr]ange: bytes=(\d+)-(\d+)", head)
            await asyncio.sleep(seconds)
            if not data.is_file():
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            size = data.stat().st_size
            first, last = (int(part[1]), int(part[2])) if part else (0, size - 1)
            kind = f"206 Partial\r\nContent-Range: bytes {first}-{last}/{size}" if part else "200 OK"
            writer.write(f"HTTP/1.1 {kind}\r\nContent-Length: {last - first + 1}\r\n\r\n".encode())
            with open(data, "rb") as file:
                file.seek(first)
                writer.write(file.read(last - first + 1))
            await writer.drain()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # clients that leave
    threading.Thread(target=loop.run_forever, daemon=True).start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)


def rate(n: int, work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return n / (perf_counter() - began)


def main(n: int = 512, milliseconds: float = 50.0) -> None:
    recipe, where = load_recipe("alexnet_small"), device.choose("auto", "cpu")
    with tempfile.TemporaryDirectory() as place, late(Path(place), milliseconds / 1000) as url:
        store = prepare(random_pictures(recipe.size, n), Path(place) / "store", size=recipe.size)
        done = preprocess.of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb, store.shorter_side)
        step = EagerSteps(where.take(fresh_net(recipe, len(store.classes))), recipe, where)

        def loader(store: Store) -> Loader:
            return Loader(store.split("train"), store.statistics, np.arange(n), recipe, done, where.device,
                          dtype=step.input_dtype)  # fmt: skip

        def read(store: Store) -> None:
            for _ in loader(store).epoch(1):
                pass

        def learn(store: Store) -> None:
            for number, batch in zip(range(STEPS), loader(store).epoch(1), strict=False):
                step.forward_backward(batch, number)
                step.update(0.001)

        rates: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            remote.own_folder = lambda number=number: (Path(place) / f"cache{number}", "")
            opened = {"folder": Store(store.path), "URL, first pass": Store(f"{url}/store")}
            opened["URL, cached"] = opened["URL, first pass"]
            for name, each in opened.items():
                rates.setdefault(f"loader, {name}", []).append(rate(n, lambda each=each: read(each)))
            remote.own_folder = lambda number=number: (Path(place) / f"other{number}", "")
            for name, each in {"folder": Store(store.path), "URL, first pass": Store(f"{url}/store")}.items():
                trained = STEPS * recipe.batch
                rates.setdefault(f"training, {name}", []).append(rate(trained, lambda each=each: learn(each)))
    print(f"{n} pictures of {recipe.size} pixels, {milliseconds:g} ms, {torch.get_num_threads()} threads of torch")
    for name, values in rates.items():
        share = median(values) / median(rates[f"{name.split(',')[0]}, folder"])
        print(f"{name:28s} {median(values):9,.0f} pictures/s ({min(values):,.0f} to {max(values):,.0f})  {share:.2f}")


if __name__ == "__main__":
    main(*(float(word) if "." in word else int(word) for word in sys.argv[1:]))
