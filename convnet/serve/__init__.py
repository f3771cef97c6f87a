"""The page: a net, what it makes of pictures, and runs while they train, for a browser on this machine.

    guard       who may ask, how much, how slowly
    routes      which address is which question
    worker      one thread that owns the net, with bounded queues
    desk        what the net says
    arithmetic  how one unit gets its value
    runs        what runs write of themselves
    confused    what a run's net confuses, with pictures

Nothing is fetched from another host, and nothing is written.
"""

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import uvicorn

from convnet.device import Device
from convnet.errors import Interrupted, UsageError
from convnet.evaluation.trained_net import checkpoint_at
from convnet.retrieval.index import load as load_index
from convnet.serve.confused import confused
from convnet.serve.desk import desk_of
from convnet.serve.guard import CONNECTIONS, Guard, Patient
from convnet.serve.routes import Server, application
from convnet.serve.runs import Runs, checkpoint_of
from convnet.serve.worker import Worker


def serve(server: Server, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until a signal. ready: is told the page's address. Raises: UsageError for a port in use; Interrupted."""
    with listening(host, port) as listener:
        shown = "localhost" if host in ("127.0.0.1", "localhost") else f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):  # it raises the signal again that ended it
            uvicorn.Server(settings(Guard(application(server), host))).run([listener])
        raise Interrupted("the page is closed")


def settings(app: Guard) -> uvicorn.Config:
    """How uvicorn serves: HTTP/1.1 alone, a bounded number of connections, no talk."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return uvicorn.Config(
        app, loop="asyncio", http=Patient, ws="none", lifespan="off", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=1,
    )  # fmt: skip


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises: UsageError."""
    with ExitStack() as undone:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = undone.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(CONNECTIONS)
        except OSError as error:
            text = f"--host {host} --port {port}: cannot listen there: {error.strerror}; choose another --port"
            raise UsageError(text) from error
        undone.pop_all()
    return listener


def server_of(place: Path, index: Path | None, names: Path | None, device: Device) -> Server:
    """What is served: a checkpoint's net; or a run's, or that of the first run of a folder that has one (of the index
    where there is one). names: a file with classes' names for people.

    Raises: UsageError when there is neither a net nor a folder; DataError.
    """
    opened = None if index is None else load_index(index)
    desks = partial(desk_of, index=opened, names=names, device=device)
    if not place.is_dir():
        return Server(Worker(), desks, desk=desks(checkpoint_at(place), place.stem))
    runs = Runs(place)
    nets = [(name, file) for name, run in runs.paths().items() if (file := checkpoint_of(run))]
    if opened is not None:
        nets.sort(key=lambda row: row[1].resolve() != Path(opened.contents.checkpoint).resolve())
    confused_of = partial(confused, device=device, names=names)
    return Server(Worker(), desks, runs, desks(nets[0][1], nets[0][0]) if nets else None, confused_of)
