"""How many threads there are and how they wait: by what the machine gives and the net can use, unless someone says."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import Run
from convnet import checkpoint, hardware, threads
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.threads import Threads, configure

LARGE, SMALL = 10**12, 10**6  # multiply-adds of a batch


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody says how many; torch's number is as before when the test ends."""
    former = torch.get_num_threads()
    for name in (threads.VARIABLE, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(former)


def cores(monkeypatch: pytest.MonkeyPatch, usable: int, quota: float | None = None) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: hardware.Cores(8, 8, usable, quota))


def test_as_many_as_the_machine_gives_and_the_net_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 3)
    assert configure(LARGE) == Threads(3, "of 8 processors")
    assert torch.get_num_threads() == 3
    assert configure(SMALL) == Threads(1, "more don't make so small a net faster")
    assert configure(2 * threads.WORTH + 1).n == 2
    assert str(configure()) == "3 threads (of 8 processors)"
    cores(monkeypatch, 8, 1.5)
    assert str(configure(LARGE)) == "1 thread (of 8 processors, by the container's limit)"
    assert threads.most() == 1


def test_who_says_so_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 4)
    assert configure(SMALL, recorded=2) == Threads(2, "as the run began")
    for nonsense in (0, -1, "2", None, 10**9):
        assert configure(SMALL, nonsense).n == 1
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert configure(SMALL, recorded=2) == Threads(3, "by OMP_NUM_THREADS")
    monkeypatch.setenv(threads.VARIABLE, "2")
    assert configure(SMALL, recorded=1) == Threads(2, "by CONVNET_THREADS")
    assert (torch.get_num_threads(), threads.most()) == (2, 2)
    for wrong in ("0", "two", "-1", "1.5", "٣", "9" * 9):
        monkeypatch.setenv(threads.VARIABLE, wrong)
        with pytest.raises(UsageError, match=f"CONVNET_THREADS={wrong}: it must be a number of threads, 1 to 4,096"):
            configure()


@pytest.mark.parametrize("name", threads.WAITING)
def test_the_users_way_of_waiting_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    chosen: dict[str, str] = {name: "ACTIVE"}
    threads.sleep_while_waiting(chosen)
    assert chosen == {name: "ACTIVE"}
    nothing: dict[str, str] = {}
    threads.sleep_while_waiting(nothing)
    assert nothing == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": threads.MOMENT}
    assert not threads.spin(nothing)
    assert threads.spin({})
    assert threads.spin({"OMP_WAIT_POLICY": "active"})
    assert not threads.spin({"GOMP_SPINCOUNT": "0"})


def test_nothing_is_set_where_torch_has_read_it_already() -> None:
    environment: dict[str, str] = {}
    threads.sleep_while_waiting(environment)
    assert environment == {}


ORDER = """
import os, sys
from {what}
assert "torch" not in sys.modules
sys.argv = ["convnet", "--version"]
try:
    {call}
except SystemExit:
    pass
print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("what", "call", "policy"),
    [("convnet.cli import app", "app.main()", "PASSIVE"), ("convnet import create_model", "pass", "None")],
)
def test_the_command_sets_it_before_torch_the_library_does_not(what: str, call: str, policy: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name not in threads.WAITING}
    program = ORDER.format(what=what, call=call)
    if "create_model" in what:
        program = program.replace('assert "torch" not in sys.modules\n', "")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1:] == [policy], done.stderr


def test_a_run_goes_on_with_its_own_threads(run: Run, few_digits: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ["--epochs", "1", "--set", "batch=64"]
    monkeypatch.setenv(threads.VARIABLE, "2")
    code, _, err = run("train", few_digits.path, *quick, "--out", "run")
    assert (code, "run folder run; 2 threads (by CONVNET_THREADS)" in err) == (0, True), err
    assert checkpoint.load(Path("run/last.ckpt")).provenance["threads"] == 2
    assert json.loads(Path("run/environment.json").read_text(encoding="utf-8"))["threads"] == 2
    monkeypatch.delenv(threads.VARIABLE)
    code, _, err = run("train", "--resume", "--out", "run", "--epochs", "2")
    assert "; 2 threads (as the run began)" in err
    assert "bitwise" not in err
    monkeypatch.setenv(threads.VARIABLE, "1")
    code, _, err = run("train", "--resume", "--out", "run", "--epochs", "3", "-q")
    assert err == "warning: threads was 2 and is 1: the run goes on, but not bitwise as if never stopped\n"
    monkeypatch.setenv(threads.VARIABLE, "many")
    assert run("predict", "run", "a.png")[0] == 2
