"""What the page's API answers: the command's own answers, described at /api, in order, and never more than fits."""

import asyncio
import base64
import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asgi import ask, asked
from conftest import CPU, Run
from convnet import checkpoint
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic
from convnet.recipe import load_recipe, with_settings
from convnet.serve import server_of
from convnet.serve.guard import Guard
from convnet.serve.openapi import description
from convnet.serve.routes import Server, application
from convnet.serve.runs import Runs
from convnet.serve.worker import Busy, Job, Worker
from convnet.training.train import train

CLIENTS = 32


def sent(app: Guard, data: bytes) -> dict[str, Any]:
    answer = ask(app, "POST", "/api/pictures", data)
    assert answer.status == 200, answer
    return answer.json  # type: ignore[no-any-return]


def about(app: Guard, name: str, rest: str) -> Any:
    answer = ask(app, "GET", f"/api/pictures/{name}/{rest}")
    assert answer.status == 200, answer
    return answer.json


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_the_page(number: int, untrained: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn ends and raises it again; nothing is advised, as nothing is to be gone on with."""
    uvicorn = pytest.importorskip("uvicorn")
    serving = uvicorn.Server.main_loop

    async def asked(server: Any) -> None:
        signal.raise_signal(number)
        await serving(server)

    monkeypatch.setattr(uvicorn.Server, "main_loop", asked)
    code, out, err = run("serve", untrained, "--port", 0, "--device", "cpu")
    assert out.startswith("convnet: http://localhost:")
    assert (code, err) == (130, "convnet: the page is closed\n")


def test_answers_are_the_commands(app: Guard, untrained: Path, pngs: list[bytes], run: Run, tmp_path: Path) -> None:
    for data in pngs[:5]:
        (tmp_path / "digit.png").write_bytes(data)
        _, out, _ = run("predict", untrained, tmp_path / "digit.png", "--json", "--device", "cpu")
        known = json.loads(out)[0]["classes"]
        said = sent(app, data)["classes"]
        assert [each["class"] for each in said] == [each["class"] for each in known]
        numbers = [each["probability"] for each in known]
        assert [each["probability"] for each in said] == pytest.approx(numbers, rel=1e-5)


def test_32_clients_get_what_one_gets(app: Guard, pngs: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """T24."""
    alone = [sent(app, data)["classes"] for data in pngs]

    async def client() -> list[Any]:
        return [(await asked(app, "POST", "/api/pictures", data)) for data in pngs]

    async def all_of_them() -> list[list[Any]]:
        return await asyncio.gather(*(client() for _ in range(CLIENTS)))

    rows = asyncio.run(all_of_them())
    n_right = sum(each.json["classes"] == known for row in rows for each, known in zip(row, alone, strict=True))
    with capsys.disabled():
        print(f"\nT24: {CLIENTS} clients x {len(pngs)} pictures: {n_right} answers equal the sequential ones")
    assert n_right == CLIENTS * len(pngs)


def test_a_batch_is_each_of_its_pictures(app: Guard, pngs: list[bytes]) -> None:
    texts = [base64.b64encode(data).decode() for data in (pngs[0], b"no picture", pngs[1])]
    rows = ask(app, "POST", "/api/batch", json.dumps({"pictures": texts}).encode()).json["pictures"]
    assert [row["failed"] is None for row in rows] == [True, False, True]
    assert rows[2]["classes"] == sent(app, pngs[1])["classes"]


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("POST", "/api/pictures", b"", 422),
        ("POST", "/api/pictures?top=0", None, 400),
        ("POST", "/api/pictures?top=-1", None, 400),
        ("POST", "/api/batch", b"[]", 400),
        ("POST", "/api/batch", b'{"pictures": "x"}', 400),
        ("POST", "/api/batch", b'{"pictures": ["%"]}', 400),
        ("POST", "/api/net", b'{"run": "x"}', 400),
        ("GET", "/api/pictures/0/cam", b"", 404),
        ("GET", "/api/pictures/ID/cam?label=10", b"", 400),
        ("GET", "/api/pictures/ID/units?stage=conv9", b"", 400),
        ("GET", "/api/pictures/ID/unit?stage=c1&map=6", b"", 400),
        ("GET", "/api/pictures/ID/unit?stage=picture&row=32", b"", 400),
        ("GET", "/api/pictures/ID/neighbours", b"", 400),
        ("GET", "/api/jobs/0", b"", 404),
        ("GET", "/runs/x/report.html", b"", 404),
        ("DELETE", "/api/net", b"", 405),
        ("GET", "/nothing", b"", 404),
    ],
)
def test_what_is_wrong_is_told(
    app: Guard, pngs: list[bytes], method: str, target: str, body: bytes | None, status: int
) -> None:
    name = sent(app, pngs[0])["id"]
    answer = ask(app, method, target.replace("ID", name), pngs[0] if body is None else body)
    assert answer.status == status
    assert answer.json["error"]


def test_the_api_is_described_as_it_is(server: Server, app: Guard) -> None:
    told = {(path, method.upper()) for path, row in description()["paths"].items() for method in row}
    routes = {(each.path, method) for each in server.routes() for method in each.methods or () if method != "HEAD"}
    assert told == {row for row in routes if row[0].startswith("/api")}
    for path, row in description()["paths"].items():
        for operation in row.values():
            named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
            assert named == {
                part[1:-1].removesuffix("}.png").strip("{}")
                for part in path.replace(".png", "").split("/")
                if part.startswith("{")
            }
    assert ask(app, "GET", "/api").json == description()


def test_a_picture_is_looked_at(app: Guard, pngs: list[bytes]) -> None:
    name = sent(app, pngs[0])["id"]
    assert np.array(about(app, name, "cam?label=3")["map"]).ndim == 2
    units = about(app, name, "units?stage=c3")["units"]
    assert len(units) == 6
    assert all(each["field"][2:] == [14, 14] or min(each["field"][:2]) == 0 for each in units)
    told = about(app, name, "stages")
    assert [each["source"] for each in told["stages"]] == ["picture", "c1", "s2", "c3", "s4", "c5", "f6"]
    sheet = ask(app, "GET", f"/api/pictures/{name}/stages/c1.png")
    assert (sheet.headers["content-type"], sheet.body[:4]) == ("image/png", b"\x89PNG")


def test_what_a_square_costs_comes_with_its_progress(app: Guard, pngs: list[bytes]) -> None:
    name = sent(app, pngs[0])["id"]
    job = ask(app, "POST", f"/api/pictures/{name}/occlusion?label=3")
    assert job.status == 202
    told = job.json
    while told["state"] in ("waiting", "running"):
        told = ask(app, "GET", f"/api/jobs/{told['id']}").json
    assert told["state"] == "done"
    assert told["done"] >= told["total"] == 29 * 29
    assert np.array(told["result"]["map"]).shape == (29, 29)


def test_neighbours_are_those_of_convnet_search(
    untrained: Path, few_digits: Store, pngs: list[bytes], tmp_path: Path, run: Run
) -> None:
    index, file = tmp_path / "digits.index", tmp_path / "digit.png"
    file.write_bytes(pngs[0])
    run("index", untrained, few_digits.path, index, "-q", "--device", "cpu")
    _, out, _ = run("search", index, file, "--json", "-q", "--device", "cpu")
    app = Guard(application(server_of(untrained, index, None, CPU)))
    found = about(app, sent(app, pngs[0])["id"], "neighbours")
    known = json.loads(out)[0]["nearest"]
    assert [each["name"] for each in found["nearest"]] == [each["name"] for each in known]
    assert found["n"] == 450
    assert all(each["src"].startswith("data:image/") for each in found["nearest"])


def test_a_forgotten_picture_is_told_and_sent_again(app: Guard, server: Server, pngs: list[bytes]) -> None:
    name = sent(app, pngs[0])["id"]
    assert server.desk is not None
    server.desk._kept.clear()
    answer = ask(app, "GET", f"/api/pictures/{name}/stages")
    assert answer.status in (200, 404)  # its walk may still be there
    assert ask(app, "GET", f"/api/pictures/{name}/picture.png").status == 404
    assert sent(app, pngs[0])["id"] == name


# the worker


def test_a_full_queue_is_busy_and_a_long_question_lets_short_ones_through() -> None:
    worker, entered, gate = Worker(short=2, long=1), threading.Event(), threading.Event()

    def long(job: Job[object]) -> object:
        job.start("long", 2)
        entered.set()
        gate.wait()
        job.update(1)
        return [short.result(0) for short in shorts]  # they were answered meanwhile

    job = worker.begin(long)
    entered.wait()
    shorts = [worker.ask(lambda k=k: k) for k in range(2)]
    with pytest.raises(Busy, match="2 questions wait already"):
        worker.ask(lambda: None)
    waiting = worker.begin(lambda job: None)
    with pytest.raises(Busy, match="1 long questions wait already"):
        worker.begin(lambda job: None)
    waiting.is_unwanted = True
    gate.set()
    while waiting.state != "failed":
        with suppress(Busy):
            worker.ask(lambda: None).result()
    assert (job.state, job.result) == ("done", [0, 1])
    assert waiting.error == "nobody waits for it any more"


def test_a_long_question_ends_when_nobody_wants_it() -> None:
    worker = Worker()

    def long(job: Job[object]) -> object:
        job.is_unwanted = True
        job.update(1)
        raise AssertionError

    job = worker.begin(long)
    while job.state in ("waiting", "running"):
        worker.ask(lambda: None).result()
    assert (job.state, job.error) == ("failed", "nobody waits for it any more")


def test_a_full_queue_is_503(server: Server, pngs: list[bytes]) -> None:
    full = Server(Worker(short=0, long=0), server.desk_of, desk=server.desk)
    answer = ask(Guard(application(full)), "POST", "/api/pictures", pngs[0])
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


# runs


@pytest.fixture(scope="module")
def runs(few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has ended, one that was stopped, one that runs, a damaged one, and other things."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = with_settings(load_recipe("lenet5_small"), ["epochs=2", "batch=100"])
    train(recipe, few_digits, folder / "ended", command="convnet train")
    for name in ("stopped", "running", "damaged"):
        (folder / name).mkdir()
        for file in ("metrics.jsonl", "recipe.toml", "timing.jsonl"):
            (folder / name / file).write_bytes((folder / "ended" / file).read_bytes())
    (folder / "damaged" / "metrics.jsonl").write_text('{"kind": \n', encoding="utf-8")
    (folder / "nothing").mkdir()
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    (folder / "ended" / "report.html").write_text("<p>a report", encoding="utf-8")
    return folder


def test_runs_tell_how_they_go(runs: Path) -> None:
    with atomic.lock(runs / "running", "training"):
        rows = {row["name"]: row for row in Runs(runs).all()}
    assert {name: row.get("state") for name, row in rows.items()} == {
        "damaged": None, "ended": "done", "running": "running", "stopped": "stopped"
    }  # fmt: skip
    assert "line 1" in rows["damaged"]["error"]
    ended = rows["ended"]
    assert (ended["epoch"], ended["epochs"], ended["net"], ended["has_net"]) == (2, 2, "lenet5", True)
    assert ended["curves"]["epoch"] == [1, 2]
    assert ended["summary"]["test"]["n"] == 90
    assert [len(each) for each in ended["curves"].values()] == [2] * 7


def test_a_run_that_grows_is_read_again(runs: Path, tmp_path: Path) -> None:
    rows = (runs / "ended" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "grows").mkdir()
    log, told = tmp_path / "grows" / "metrics.jsonl", Runs(tmp_path)
    log.write_bytes(b"".join(rows[:-1]))
    assert told.all()[0]["epoch"] == 1
    log.write_bytes(b"".join(rows))
    assert told.all()[0]["epoch"] == 2


def test_a_folders_nets_are_chosen_by_their_runs(runs: Path, pngs: list[bytes]) -> None:
    app = Guard(application(server_of(runs, None, None, CPU)))
    assert ask(app, "GET", "/api/net").json["name"] == "ended"
    assert ask(app, "POST", "/api/net", b'{"run": "ended"}').json["name"] == "ended"
    assert ask(app, "POST", "/api/net", b'{"run": "stopped"}').status == 404
    assert ask(app, "POST", "/api/net", b'{"run": "../ended"}').status == 404
    assert sent(app, pngs[0])["classes"]
    report = ask(app, "GET", "/runs/ended/report.html")
    assert report.body == b"<p>a report"
    assert "sandbox" in report.headers["content-security-policy"]
    assert ask(app, "GET", "/runs/nothing/report.html").status == 404


def ended(app: Guard, job: Any) -> Any:
    while job["state"] in ("waiting", "running"):
        job = ask(app, "GET", f"/api/jobs/{job['id']}").json
    return job


def test_what_a_run_confuses_is_its_validations(runs: Path, few_digits: Store) -> None:
    """As a confusion counted by hand from what `predict` says of the validation pictures."""
    app = Guard(application(server_of(runs, None, None, CPU)))
    first = ask(app, "POST", "/api/runs/ended/confused")
    assert first.status == 202
    job = ended(app, first.json)
    told, val, net = job["result"], few_digits.split("val"), TrainedNet.load(runs / "ended")
    said = [row.classes[0] for row in net.predict([val.picture(i) for i in range(val.n)], 1)]
    labels = [few_digits.classes[k] for k in val.labels]
    wrong = Counter(pair for pair in zip(labels, said, strict=True) if pair[0] != pair[1])
    assert (told["n"], told["total"], told["n_wrong"]) == (val.n, val.n, wrong.total())
    assert told["n_wrong"] > 0
    assert [(pair["count"], wrong[pair["label"], pair["predicted"]]) for pair in told["pairs"]] == [
        (n, n) for _, n in wrong.most_common(9)
    ]
    for pair in told["pairs"]:
        assert pair["n"] == labels.count(pair["label"])
        assert len(pair["pictures"]) == min(4, pair["count"])
        assert all(shot["label"] == pair["label"] for shot in pair["pictures"])
        keys = {key for key, *names in zip(val.keys, labels, said, strict=True) if names == [*pair.values()][:2]}
        assert {shot["key"] for shot in pair["pictures"]} <= keys
    assert (told["epoch"], told["trained_on"]) == (net_epoch(runs / "ended"), False)
    assert ask(app, "POST", "/api/runs/ended/confused").json["id"] == job["id"]  # of the same net, asked once
    ask(app, "DELETE", f"/api/jobs/{job['id']}")
    assert ask(app, "POST", "/api/runs/ended/confused").json["id"] != job["id"]


def net_epoch(run: Path) -> int:
    return checkpoint.load(run / "best.ckpt").position.epoch - 1


def test_a_better_net_is_asked_anew(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "ended", tmp_path / "ended")
    app = Guard(application(server_of(tmp_path, None, None, CPU)))
    first = ended(app, ask(app, "POST", "/api/runs/ended/confused").json)
    rows = ask(app, "GET", "/api/runs").json["runs"]
    os.utime(tmp_path / "ended" / "best.ckpt", ns=(1, 1))
    assert ask(app, "GET", "/api/runs").json["runs"][0]["net_version"] != rows[0]["net_version"]
    assert ended(app, ask(app, "POST", "/api/runs/ended/confused").json)["id"] != first["id"]


def test_what_confusion_lacks_is_told(runs: Path, few_digits: Store, tmp_path: Path) -> None:
    app = Guard(application(server_of(runs, None, None, CPU)))
    assert ask(app, "POST", "/api/runs/nothing/confused").status == 404
    job = ended(app, ask(app, "POST", "/api/runs/stopped/confused").json)
    assert (job["state"], job["error"]) == ("failed", "stopped has saved no net yet")
    kept = checkpoint.load(runs / "ended" / "best.ckpt")
    elsewhere = replace(kept, provenance=dict(kept.provenance) | {"store": str(tmp_path / "gone")})
    folded = replace(kept, recipe=replace(kept.recipe, fold_epoch=1, validation=0.5))
    for name, changed, text in (
        ("moved", elsewhere, "gone is not there; if it moved, convnet report"),
        ("folded", folded, "has a val split of its own"),
    ):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name / "best.ckpt", changed)
        app = Guard(application(server_of(tmp_path / name, None, None, CPU)))
        job = ended(app, ask(app, "POST", f"/api/runs/{name}/confused").json)
        assert job["state"] == "failed"
        assert text in job["error"]


def test_of_pictures_that_were_trained_on_it_is_told(few_digits: Store, tmp_path: Path) -> None:
    """Nothing is held out: an error; held out until the last epoch: what is shown says so."""
    source = open_source("digits")
    few = replace(source, entries=[replace(each, split="train") for each in source.entries[::8]])
    store = prepare(few, tmp_path / "store", size=28)
    for name, settings, known in (("none", ["validation=0"], None), ("fold", ["validation=0.2", "fold_epoch=2"], True)):
        recipe = with_settings(load_recipe("lenet5_small"), ["epochs=2", "batch=100", *settings])
        train(recipe, store, tmp_path / "runs" / name)
        app = Guard(application(server_of(tmp_path / "runs", None, None, CPU)))
        job = ended(app, ask(app, "POST", f"/api/runs/{name}/confused").json)
        if known is None:
            assert "holds out no validation pictures" in job["error"]
        else:
            assert (job["result"]["trained_on"], job["result"]["epoch"]) == (True, 2)


def test_a_folder_without_a_net_says_so(runs: Path, tmp_path: Path) -> None:
    app = Guard(application(server_of(tmp_path, None, None, CPU)))
    assert ask(app, "GET", "/api/net").json == {"name": None}
    answer = ask(app, "POST", "/api/pictures", b"x")
    assert (answer.status, answer.json["error"]) == (404, "there is no net yet: no run here has saved one")
    assert ask(app, "GET", "/api/runs").json == {"runs": []}


# the verb


def test_the_verb_tells_what_it_lacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("serve", "nothing")
    assert code == 2
    assert "nothing: no such checkpoint" in err
    for name in [each for each in sys.modules if each.startswith("convnet.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve", "nothing")
    assert code == 2
    assert '[serve]"' in err
