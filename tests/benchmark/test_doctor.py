"""What the machine tells is read right from the forms that systems write it in; what follows is said; nothing more."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run
from convnet import hardware
from convnet.benchmark import doctor
from convnet.benchmark.doctor import advice, choices, examine, lines
from convnet.io import disk

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu vme sse2 avx2 hypervisor avx512f avx512_bf16 amx_bf16 amx_tile

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm sve bf16 i8mm
CPU part\t: 0xd0c
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "name", "flags", "virtual"),
    [
        (XEON, "8481C", ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"), True),
        (ARM, "", ("asimd", "sve", "bf16"), False),
    ],
)
def test_processor(tmp_path: Path, text: str, name: str, flags: tuple[str, ...], virtual: bool) -> None:
    found = hardware.processor(tree(tmp_path, {"proc/cpuinfo": text}))
    assert (found.flags, found.virtual) == (flags, virtual)
    assert name in found.name


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert hardware.processor(tmp_path).flags == ()
    cores = hardware.cores(tmp_path)
    assert (cores.physical, cores.quota, cores.n) == (None, None, cores.usable)
    assert (hardware.memory(tmp_path).available, hardware.memory(tmp_path).limit) == (None, None)


def test_two_processors_of_one_core(tmp_path: Path) -> None:
    assert hardware.cores(tree(tmp_path, {"proc/cpuinfo": XEON})).physical == 1


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/cpu.max": "150000 100000",
        },
        {"proc/self/cgroup": "0::/not/here\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        {
            "proc/self/cgroup": "2:cpu,cpuacct:/docker/x\n1:memory:/\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "75000\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["a group above", "the container's own", "version 1"],
)  # fmt: skip
def test_quota_of_a_container(tmp_path: Path, files: dict[str, str]) -> None:
    found = hardware.cores(tree(tmp_path, files))
    assert found.quota == 1.5
    assert found.n == 1  # one thread and a half is one


def test_memory_limit_of_a_container(tmp_path: Path) -> None:
    meminfo = {"proc/meminfo": "MemTotal:        1000 kB\nMemFree: 5 kB\nMemAvailable:     800 kB\n"}
    assert hardware.memory(tree(tmp_path, meminfo)) == hardware.Memory(1024000, 819200, None)
    newer = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "5000\n",
        "sys/fs/cgroup/memory.current": "2000\n",
    }
    limited = hardware.memory(tree(tmp_path, newer))
    assert (limited.limit, limited.free) == (3000, 3000)
    tree(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert hardware.memory(tmp_path).free == 819200
    older = {
        "proc/self/cgroup": "4:memory:/x\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "900000\n",
    }
    assert hardware.memory(tree(tmp_path, older)).limit == 900000


def test_disk_leaves_nothing_and_reads_what_it_wrote(tmp_path: Path) -> None:
    rate = disk.measure(tmp_path, 1 << 20)
    assert list(tmp_path.iterdir()) == []
    assert rate.size == 1 << 20
    assert rate.write is not None and rate.write > 0  # noqa: PT018
    assert (rate.read is None) == bool(rate.note)


def test_disk_that_stays_in_memory_has_no_reading_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system can't be asked to drop a file")
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None)  # so that what was written stays where it is
    rate = disk.measure(tmp_path, 1 << 20)
    assert rate.read is None
    assert rate.note == "reading not measured: 100% of the file stayed in memory"


def test_disk_without_room_or_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MB are free" in disk.measure(tmp_path, 1 << 60).note
    assert disk.measure(tmp_path / "gone", 1).note == "not measured: No such file or directory"


FOUND: dict[str, Any] = {
    "cores": {"machine": 8, "physical": 4, "usable": 8, "quota": None, "n": 8, "load": 0.3},
    "memory": {"total": 16 << 30, "available": 8 << 30, "limit": None, "free": 8 << 30},
    "threads": 4,
    "spins": False,
    "torch": {"vectors": "AVX512", "cuda": None},
    "nvidia_files": [],
    "compilers": {"c": "/usr/bin/cc", "c++": None, "python_headers": True},
    "cache": {"folder": "/home/me/.cache/convnet", "why": ""},
    "packages": dict.fromkeys(doctor.PACKAGES),
    "disk": {"folder": ".", "size": 1 << 28, "write": 1e9, "read": 1e9, "note": ""},
    "environment": {},
}
CHOSEN = {"device": "cpu", "precision": "bf16", "kernels": "compiled forms, by /usr/bin/cc"}
GPU = CHOSEN | {"device": "cuda", "kernels": "kernels in Triton 3.7.0"}


def test_no_advice_where_nothing_is_wanting() -> None:
    assert list(advice(FOUND, CHOSEN)) == []
    with_triton = FOUND | {"packages": FOUND["packages"] | {"triton": "3.7.0"}, "nvidia_files": ["/dev/nvidia0"]}
    assert list(advice(with_triton, GPU)) == []


@pytest.mark.parametrize(
    ("found", "chosen", "text"),
    [
        ({"compilers": {"c": None}}, CHOSEN | {"kernels": "plain forms: no C"}, "Install a C compiler"),
        ({}, CHOSEN | {"kernels": "plain forms: /usr/bin/cc failed: no"}, "cc could not make the fast forms work"),
        ({"environment": {"CONVNET_KERNELS": "plain"}}, CHOSEN | {"kernels": "plain"}, "Unset CONVNET_KERNELS"),
        ({"threads": 9}, CHOSEN, "Set OMP_NUM_THREADS=8: torch uses 9 threads, but 8 processors may be used"),
        ({"threads": 3, "environment": {"OMP_NUM_THREADS": "3"}}, CHOSEN, "Unset OMP_NUM_THREADS: torch uses 3"),
        ({"spins": True}, CHOSEN, "Set OMP_WAIT_POLICY=PASSIVE before torch is loaded"),
        ({"cores": FOUND["cores"] | {"load": 8.5}}, CHOSEN, "a load of 8.5 on 8 processors"),
        ({"nvidia_files": ["/dev/nvidia0"]}, CHOSEN, "this torch is built for the CPU: install torch for CUDA"),
        ({"nvidia_files": ["x"], "torch": {"cuda": "13.0"}}, CHOSEN, "torch can't use it: look at nvidia-smi"),
        ({}, GPU | {"kernels": "plain forms: Triton is not installed"}, "Install Triton"),
        ({"packages": FOUND["packages"] | {"triton": "3"}}, GPU | {"kernels": "plain forms: x"}, "Triton could not"),
        ({"environment": {"CONVNET_KERNELS": "plain"}}, GPU | {"kernels": "plain forms"}, "Unset CONVNET_KERNELS"),
        ({"packages": FOUND["packages"] | {"triton": "3"}}, GPU | {"precision": "fp32"}, "compute capability 8.0"),
        ({}, CHOSEN | {"precision": "fp32"}, "no avx512_bf16 or amx_bf16"),
        ({"cache": {"folder": None, "why": "others may write to it"}}, CHOSEN, "isn't used: others may write to it"),
        ({"environment": {"TRITON_INTERPRET": "1"}}, CHOSEN, "Unset TRITON_INTERPRET"),
        ({"disk": FOUND["disk"] | {"read": 196608 * 400}}, CHOSEN, "reads 400 raw pictures of 256 x 256 a second: "
         "where a set is larger than the free memory (8.0 GiB)"),
    ],
)  # fmt: skip
def test_each_want_is_one_sentence_with_what_to_do(found: dict[str, Any], chosen: dict[str, Any], text: str) -> None:
    said = list(advice(FOUND | found, chosen))
    assert len(said) == 1
    assert text in said[0]
    assert said[0].endswith(".")


def test_choices_are_those_of_device() -> None:
    from convnet import device

    where = device.choose()
    chosen = choices(FOUND)
    assert (chosen["reason"], chosen["device"]) == (where.reason, where.device.type)
    assert chosen["precision"] == ("bf16" if where.dtype == torch.bfloat16 else "fp32")
    assert chosen["decoder"].split()[0] == "simplejpeg"
    assert chosen["loader"] == "1 thread for raw stores, 8 for jpeg stores"


def test_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MOST", 1 << 20)
    monkeypatch.setattr(disk.measure, "__defaults__", (1 << 20,))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("CONVNET_DATA", "/some/where")
    code, out, err = run("doctor")
    assert code == 0
    assert [line for line in out.splitlines() if line and not line.startswith(" ")] == [
        "found", "chosen, unless a recipe says otherwise", "what would make it faster"
    ]  # fmt: skip
    assert max(map(len, out.splitlines())) <= 80
    assert "CONVNET_DATA=/some/where" in out
    code, out, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["found"]["versions"]["torch"] == torch.__version__
    assert told["found"]["threads"] == torch.get_num_threads()
    assert told["found"]["disk"]["size"] == 1 << 20


def test_command_without_a_compiler_and_packages_still_ends_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from convnet.kernels.cpu import compiled

    monkeypatch.setattr(disk.measure, "__defaults__", (1 << 20,))
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("CC", "CXX", "CONVNET_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware, "version", lambda name: None)
    monkeypatch.setattr(compiled, "state", lambda: "plain forms: no C compiler (cc) was found")
    code, out, _ = run("doctor")
    assert code == 0
    assert "no compiler on the path" in out
    assert "Install a C compiler" in out
    assert "triton       not installed" in out


def test_command_names_a_folder_that_is_none(run: Run) -> None:
    code, _, err = run("doctor", "nowhere")
    assert code == 2
    assert err == "convnet: nowhere is not a folder; name one whose disk is to be measured\n"


def test_a_gpu_is_told_with_what_matters() -> None:
    gpu = {"name": "NVIDIA H200", "capability": [9, 0], "total": 140 << 30, "free": 139 << 30, "multiprocessors": 132,
           "shared_memory": 227 << 10}  # fmt: skip
    told = {
        "found": examine_found(gpus=[gpu]),
        "chosen": CHOSEN | {"reason": "r", "layout": "l", "loader": "l", "decoder": "d"},
        "advice": [],
    }
    text = " ".join(" ".join(lines(told, 100)).split())
    assert (
        "NVIDIA H200, compute capability 9.0, 140.0 GiB, 139.0 GiB free, 132 multiprocessors, 227 KiB shared memory"
        in text
    )
    assert "nothing that was looked at" in text


def examine_found(**changes: Any) -> dict[str, Any]:
    return {
        **FOUND,
        "versions": hardware.versions(),
        "processor": {"name": "a processor", "flags": [], "virtual": False},
        "mps": sys.platform == "darwin",
        **changes,
    }


def test_examine_takes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.measure, "__defaults__", (1 << 20,))
    told = examine(tmp_path)
    assert told["found"]["disk"]["folder"] == str(tmp_path.resolve())
