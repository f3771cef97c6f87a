"""Two hosts train as one process does: two network namespaces, an agent of torchrun in each, and a link that is cut."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from test_processes import TESTS, trained

from convnet import checkpoint
from convnet.data.store import Store

FIELDS = ("epochs=25", "batch=314", "lr=0.0001")
NAMES = ("convnet0", "convnet1")
CUT = 5.0  # seconds without a link


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, ...]]:
    """Two network namespaces joined by a pair of virtual devices, 10.87.0.1 and 10.87.0.2."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", NAMES[0], "netns", NAMES[0], "type", "veth", "peer", "name", NAMES[1], "netns", NAMES[1])
        for k, name in enumerate(NAMES, 1):
            ip("-n", name, "addr", "add", f"10.87.0.{k}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces can't be made here: it takes root, and Linux's ip")
    yield NAMES
    for name in NAMES:
        ip("netns", "del", name, check=False)


@pytest.mark.large
def test_two_hosts_train_as_one_process(hosts: tuple[str, ...], few_digits: Store, tmp_path: Path) -> None:
    trained(few_digits, [(tmp_path / "alone", 1, FIELDS)])
    agents = []
    for rank, name in enumerate(hosts):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank),
                    "--master-addr", "10.87.0.1", "--master-port", "29500"]  # fmt: skip
        words = [sys.executable, *launcher, str(TESTS / "process_driver.py"), str(few_digits.path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": name}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
        agents.append(subprocess.Popen(["ip", "netns", "exec", name, *words, str(tmp_path / "run"), *FIELDS],
                                       env=environment, stderr=subprocess.PIPE, text=True))  # fmt: skip
    end = monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and monotonic() < end:
        sleep(0.05)
    ip("-n", hosts[1], "link", "set", hosts[1], "down")
    began = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    sleep(CUT)
    assert len((tmp_path / "run" / "metrics.jsonl").read_bytes()) <= len(began) + 1000, "the link was not cut"
    ip("-n", hosts[1], "link", "set", hosts[1], "up")
    for agent in agents:
        said = agent.communicate(timeout=300)[1]
        assert agent.returncode == 0, said
    one, other = (checkpoint.load(tmp_path / name / "last.ckpt") for name in ("alone", "run"))
    assert one.position.step == other.position.step == 50
    for name, weight in one.weights.items():
        difference = torch.linalg.vector_norm(other.weights[name] - weight)
        assert difference <= 1e-5 * torch.linalg.vector_norm(weight) + 1e-12, name
