"""What answers which address: the page's files, and the questions to the net and the runs, described at /api."""

import asyncio
import base64
import binascii
from collections.abc import Callable
from concurrent.futures import Future
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from convnet.errors import ConvnetError, DataError, UsageError
from convnet.io import strict_json
from convnet.io.strict_json import Json
from convnet.progress import Progress
from convnet.report import render
from convnet.serve.desk import TOP, Desk, Gone
from convnet.serve.openapi import description
from convnet.serve.runs import Runs, checkpoint_of, version_of
from convnet.serve.worker import Busy, Job, Worker

T = TypeVar("T")
DeskOf = Callable[[Path, str], Desk]
ConfusedOf = Callable[[Path, Progress], Json]
BATCH = 64  # pictures in a request
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
STATUS: tuple[tuple[type[Exception], int], ...] = ((Gone, 404), (Busy, 503), (UsageError, 400), (DataError, 422))
REPORT_POLICY = (  # a report brings its own script, which may do nothing but draw
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
)


class Server:
    """The questions. `desk` is None where there is no net yet; only the worker's thread asks it."""

    def __init__(
        self,
        worker: Worker,
        desk_of: DeskOf,
        runs: Runs | None = None,
        desk: Desk | None = None,
        confused_of: ConfusedOf | None = None,
    ) -> None:
        """desk_of: the desk of a checkpoint, by its file and name. confused_of: what a run's net confuses."""
        self.worker, self.desk_of, self.runs, self.desk, self.confused_of = worker, desk_of, runs, desk, confused_of
        self._confused: dict[str, tuple[str | None, str]] = {}  # by run: of which net, and the job that tells

    async def ask(self, question: Callable[[Desk], T]) -> T:
        """What the desk says. Raises: Gone where there is no net; Busy; what the question raises."""
        return await asyncio.wrap_future(self._asked(question))

    def _asked(self, question: Callable[[Desk], T]) -> "Future[T]":
        return self.worker.ask(lambda: question(self._desk()))

    def _desk(self) -> Desk:
        if self.desk is None:
            raise Gone("there is no net yet: no run here has saved one")
        return self.desk

    # the net and the pictures

    async def net(self, request: Request) -> Response:
        """No name where there is no net yet, which is no error."""
        return _json({"name": None} if self.desk is None else await self.ask(Desk.about))

    async def choose(self, request: Request) -> Response:
        """Another run's net, or the same one's as it is now."""
        content = _content(await request.body())
        name, runs = content.get("run"), self.runs
        if not isinstance(name, str) or runs is None:
            raise UsageError('name a run, as {"run": "photos"}, of those that /api/runs tells')

        def load() -> Json:
            if (checkpoint := checkpoint_of(runs.path(name))) is None:
                raise Gone(f"{name} has saved no net yet")
            self.desk = self.desk_of(checkpoint, name)
            return self.desk.about()

        return _json(await asyncio.wrap_future(self.worker.ask(load)))

    async def predict(self, request: Request) -> Response:
        data, top = await request.body(), _number(request, "top", TOP)
        return _json(await self.ask(lambda desk: desk.predict(data, top)))

    async def batch(self, request: Request) -> Response:
        content, top = _content(await request.body()), _number(request, "top", TOP)
        texts = content.get("pictures")
        if not isinstance(texts, list) or not 1 <= len(texts) <= BATCH:
            raise UsageError(f'the body is {{"pictures": [base64, ...]}}, with 1 to {BATCH} of them')
        try:
            pictures = [base64.b64decode(each, validate=True) for each in texts]
        except (binascii.Error, ValueError, TypeError) as error:
            raise UsageError(f"a picture is no base64: {error}") from error
        return _json({"pictures": await self.ask(lambda desk: desk.several(pictures, top))})

    async def picture(self, request: Request) -> Response:
        return _png(await self.ask(lambda desk: desk.picture(_name(request))))

    async def cam(self, request: Request) -> Response:
        label = _optional(request, "label")
        return _json(await self.ask(lambda desk: desk.look(_name(request), label)))

    async def occlusion(self, request: Request) -> Response:
        name, label = _name(request), _optional(request, "label")
        job = self.worker.begin(lambda progress: self._desk().occlude(name, label, progress))
        return _json(job.to_dict(), 202)

    async def job(self, request: Request) -> Response:
        return _json(self._job(request).to_dict())

    async def end(self, request: Request) -> Response:
        """Its work ends at its next step."""
        job = self._job(request)
        job.is_unwanted = True
        return _json(job.to_dict())

    def _job(self, request: Request) -> Job[object]:
        job = self.worker.job(request.path_params["job"])
        if job is None:
            raise Gone("no such job is known, or no more")
        return job

    async def units(self, request: Request) -> Response:
        stage = _text(request, "stage")
        return _json(await self.ask(lambda desk: desk.units(_name(request), stage)))

    async def neighbours(self, request: Request) -> Response:
        return _json(await self.ask(lambda desk: desk.neighbours(_name(request))))

    async def stages(self, request: Request) -> Response:
        return _json(await self.ask(lambda desk: desk.stages(_name(request))))

    async def sheet(self, request: Request) -> Response:
        stage = request.path_params["stage"]
        return _png(await self.ask(lambda desk: desk.sheet(_name(request), stage)))

    async def unit(self, request: Request) -> Response:
        stage = _text(request, "stage")
        place = (_number(request, "map", 0), _number(request, "row", 0), _number(request, "column", 0))
        return _json(await self.ask(lambda desk: desk.unit(_name(request), stage, place)))

    # the runs

    async def all_runs(self, request: Request) -> Response:
        runs = [] if self.runs is None else await asyncio.to_thread(self.runs.all)
        return _json({"runs": runs})

    async def confused(self, request: Request) -> Response:
        """Of the same net the same job, as long as it is known, for all who ask."""
        runs, confused_of, name = self.runs, self.confused_of, request.path_params["run"]
        if runs is None or confused_of is None:
            raise Gone("no runs are served")
        run = runs.path(name)
        version, known = version_of(run), self._confused.get(name)
        job = self.worker.job(known[1]) if known is not None and known[0] == version else None
        if job is None or job.is_unwanted or job.state == "failed":
            job = self.worker.begin(lambda progress: confused_of(run, progress))
            self._confused[name] = version, job.id
        return _json(job.to_dict(), 202)

    async def report(self, request: Request) -> Response:
        if self.runs is None:
            raise Gone("no runs are served")
        body = await asyncio.to_thread(self.runs.report, request.path_params["run"])
        return Response(body, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    async def api(self, request: Request) -> Response:
        return _json(description())

    def routes(self) -> list[Route]:
        """Every address; /api tells of those that begin with it."""
        picture = "/api/pictures/{picture}"
        return [
            Route("/api", self.api, methods=["GET"]),
            Route("/api/net", self.net, methods=["GET"]),
            Route("/api/net", self.choose, methods=["POST"]),
            Route("/api/pictures", self.predict, methods=["POST"]),
            Route("/api/batch", self.batch, methods=["POST"]),
            Route(f"{picture}/picture.png", self.picture, methods=["GET"]),
            Route(f"{picture}/cam", self.cam, methods=["GET"]),
            Route(f"{picture}/occlusion", self.occlusion, methods=["POST"]),
            Route(f"{picture}/units", self.units, methods=["GET"]),
            Route(f"{picture}/neighbours", self.neighbours, methods=["GET"]),
            Route(f"{picture}/stages", self.stages, methods=["GET"]),
            Route(f"{picture}/stages/{{stage}}.png", self.sheet, methods=["GET"]),
            Route(f"{picture}/unit", self.unit, methods=["GET"]),
            Route("/api/jobs/{job}", self.job, methods=["GET"]),
            Route("/api/jobs/{job}", self.end, methods=["DELETE"]),
            Route("/api/runs", self.all_runs, methods=["GET"]),
            Route("/api/runs/{run}/confused", self.confused, methods=["POST"]),
            Route("/runs/{run}/report.html", self.report, methods=["GET"]),
            *(_static(name, content, kind) for name, (content, kind) in page_files().items()),
        ]


def application(server: Server) -> Starlette:
    """The ASGI application; `guard.Guard` stands before it."""
    handlers = {Exception: _failed, HTTPException: _http_error, ConvnetError: _told}
    return Starlette(routes=server.routes(), exception_handlers=handlers)  # type: ignore[arg-type]


def page_files() -> dict[str, tuple[bytes, str]]:
    """{address: (content, media type)} of the page, which are all files that are served."""
    folder, style = files("convnet.serve") / "page", files("convnet.report") / "page.css"
    found = {f"/{each.name}": (each.read_bytes(), TYPES[Path(each.name).suffix]) for each in folder.iterdir()}
    found["/style.css"] = style.read_bytes() + found["/style.css"][0], "text/css"
    del found["/page.html"]
    return found | {"/": (render("page.html", {"title": "serve"}, folder, is_alone=False).encode(), "text/html")}


def _static(address: str, content: bytes, kind: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return Route(address, answer, methods=["GET"])


def _json(content: Json, status: int = 200) -> Response:
    return JSONResponse(content, status)


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png")


def _content(body: bytes) -> Json:
    """Raises: UsageError for what is no JSON object."""
    try:
        return strict_json.parse(body)
    except ValueError as error:
        raise UsageError(f"the body is no JSON object: {error}") from error


def _name(request: Request) -> str:
    return str(request.path_params["picture"])


def _text(request: Request, name: str) -> str:
    """Raises: UsageError where it isn't given."""
    if (text := request.query_params.get(name)) is None:
        raise UsageError(f"give ?{name}=")
    return text


def _optional(request: Request, name: str) -> int | None:
    return _number(request, name, 0) if name in request.query_params else None


def _number(request: Request, name: str, default: int) -> int:
    """Raises: UsageError for what is no whole number of up to nine digits."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{name}={text[:40]!r}: must be a whole number from 0")
    return int(text)


async def _told(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": str(error)}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "an error of this server; it goes on"}, 500)
