"""What is on this machine, what is chosen for it, and what would make it faster?

Everything told here was looked at: a package is "installed" when its files are (it isn't imported), a compiler when it
is on the path, the disk is as fast as it just was. Advice follows from these findings alone.
"""

import os
import shlex
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from convnet import device, hardware, threads
from convnet.benchmark.table import wrapped
from convnet.data.decode import stored_by
from convnet.errors import UsageError
from convnet.io import disk
from convnet.io.cache import own_folder
from convnet.io.strict_json import Json
from convnet.kernels.cpu import compiled
from convnet.kernels.cuda import available as on_cuda
from convnet.progress import SILENT, Progress
from convnet.training import memory_layout

PACKAGES = ("triton", "onnx", "onnxruntime", "onnxscript", "torchvision", "timm")
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", *threads.WAITING),
    *("CC", "CXX", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES"),
)
RAW_PICTURE = 256 * 256 * 3  # bytes in a raw store
SLOW_DISK = 2000  # raw pictures a second: below this the disk is worth a word
STEPS = 3
LEAST_COLUMNS = 40
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # what NVIDIA's driver puts there


def examine(folder: Path, progress: Progress = SILENT) -> Json:
    """{"found", "chosen", "advice"} as what JSON holds; bytes and bytes a second are whole numbers of bytes.

    folder: whose disk is measured. Takes a few seconds, more when the kernels are compiled for the first time.
    Raises: UsageError when `folder` isn't one.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name one whose disk is to be measured")
    progress.start("looking", STEPS, unit="checks")
    rate = disk.measure(folder.resolve())
    progress.update(1)
    cores, memory, (cache, why) = hardware.cores(), hardware.memory(), own_folder()
    found = {
        "versions": hardware.versions() | {"torch": str(torch.__version__)},  # with its build
        "processor": asdict(hardware.processor()),
        "cores": {**asdict(cores), "n": cores.n, "load": hardware.load()},
        "memory": {**asdict(memory), "free": memory.free},
        "threads": torch.get_num_threads(),
        "spins": threads.spin(os.environ),
        "torch": {"vectors": torch.backends.cpu.get_cpu_capability(), "cuda": torch.version.cuda},
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "nvidia_files": [path for path in GPU_FILES if Path(path).exists()],
        "mps": torch.backends.mps.is_available(),
        "compilers": _compilers(),
        "cache": {"folder": None if cache is None else str(cache), "why": why},  # of compiled kernels
        "packages": {name: hardware.version(name) for name in PACKAGES},
        "disk": asdict(rate),
        "environment": {  # the variables that change how convnet runs
            name: text for name, text in sorted(os.environ.items()) if name.startswith("CONVNET_") or name in VARIABLES
        },
    }
    progress.update(2)
    chosen = choices(found)
    progress.update(STEPS)
    progress.finish()
    return {"found": found, "chosen": chosen, "advice": list(advice(found, chosen))}


def choices(found: Json) -> Json:
    """What convnet does here when nothing else is asked for, and why; C is compiled if it is not yet."""
    where = device.choose()
    return {
        "device": where.device.type,
        "precision": "bf16" if where.dtype == torch.bfloat16 else "fp32",
        "reason": where.reason,
        "layout": str(memory_layout.known(where) or "measured for each net and batch when its first training begins"),
        "threads": where.threads,
        "kernels": on_cuda.state(where.device) if where.device.type == "cuda" else compiled.state(),
        "decoder": f"{stored_by()} for jpeg stores",
        "loader": f"1 thread for raw stores, {found['cores']['n']} for jpeg stores",
    }


def advice(found: Json, chosen: Json) -> Iterator[str]:
    """What would make it faster: each a sentence with what to do. Nothing for what was not found wanting."""
    on, is_narrow, variables = chosen["device"], chosen["precision"] != "fp32", found["environment"]
    if on == "cpu" and found["nvidia_files"]:
        if found["torch"]["cuda"] is None:
            yield "An NVIDIA device is here, but this torch is built for the CPU: install torch for CUDA (pytorch.org)."
        else:
            yield "An NVIDIA device is here, but torch can't use it: look at nvidia-smi and CUDA_VISIBLE_DEVICES."
    if on == "cuda" and not is_narrow:
        yield "This GPU has no bf16 in its tensor cores: one of compute capability 8.0 or more computes in bf16."
    if on == "cpu" and not is_narrow:
        yield "This processor has no avx512_bf16 or amx_bf16: one that has computes in bf16; here it is fp32."
    if variables.get("TRITON_INTERPRET") == "1":
        yield "Unset TRITON_INTERPRET: with it Triton's kernels run step by step in Python."
    if chosen["kernels"].startswith("plain") and on in ("cpu", "cuda"):
        yield _of_kernels(found, on)
    if found["compilers"]["c"] is not None and found["cache"]["folder"] is None:
        yield f"The fast forms are compiled anew by each process, as their cache isn't used: {found['cache']['why']}."
    n_threads, n, load = found["threads"], found["cores"]["n"], found["cores"]["load"]
    if n_threads > n:
        yield f"Set OMP_NUM_THREADS={n}: torch uses {n_threads} threads, but {_count(n, 'processor')} may be used."
    elif n_threads < min(n, found["cores"]["physical"] or n) and "OMP_NUM_THREADS" in variables:
        yield f"Unset OMP_NUM_THREADS: torch uses {_count(n_threads, 'thread')}, and {n} processors may be used."
    if found["spins"]:
        yield "Set OMP_WAIT_POLICY=PASSIVE before torch is loaded: its threads wait in loops that crawl beside others."
    if load is not None and load > n:
        yield f"Other work is running: a load of {load:.1f} on {_count(n, 'processor')}; end it, or expect less."
    read, free = found["disk"]["read"], found["memory"]["free"]
    if read is not None and read < SLOW_DISK * RAW_PICTURE:
        larger = f"larger than the free memory ({_size(free)})" if free is not None else "larger than the memory"
        yield (
            f"The disk reads {read / RAW_PICTURE:,.0f} raw pictures of 256 x 256 a second: where a set is {larger} and "
            "training waits, prepare it with --encoding jpeg, or move the store to a faster disk."
        )


def _of_kernels(found: Json, on: str) -> str:
    """Why the plain forms serve, and what to do."""
    compiler = found["compilers"]["c"]
    if found["environment"].get("CONVNET_KERNELS") == "plain":
        return "Unset CONVNET_KERNELS: with plain the fast forms stay unused."
    if on == "cuda" and found["packages"]["triton"] is None:
        return "Install Triton (pip install triton): on CUDA the fast forms are written in it."
    if compiler is None:
        return "Install a C compiler (Debian: apt install gcc): the fast forms are compiled at their first use."
    what = "Triton" if on == "cuda" else f"The C compiler {compiler}"
    return f"{what} could not make the fast forms work: see what is said of the kernels."


def lines(result: Json, columns: int) -> Iterator[str]:
    """What `examine` found, as text; sentences are broken into lines of `columns` characters."""
    width, chosen = max(columns, LEAST_COLUMNS), result["chosen"]
    rows = {"device": chosen["reason"]} | {name: chosen[name] for name in ("layout", "kernels", "decoder", "loader")}
    for title, table in (("found", _rows(result["found"])), ("\nchosen, unless a recipe says otherwise", rows)):
        yield from title.split("\n")
        for name, text in table.items():
            yield from wrapped(f"  {name:<12} {text}", " " * 15, width)
    yield from ("", "what would make it faster")
    for sentence in result["advice"]:
        yield from wrapped(f"  - {sentence}", "    ", width)
    if not result["advice"]:
        yield "  nothing that was looked at"


def _rows(found: Json) -> dict[str, str]:
    versions, cores, memory, processor = (found[name] for name in ("versions", "cores", "memory", "processor"))
    names, compilers = {"python": "Python", "pillow": "Pillow"}, found["compilers"]
    shown = [f"{names.get(name, name)} {version or 'without a version'}" for name, version in versions.items()]
    quota = f", {cores['quota']:g} by the container's limit" if cores["quota"] is not None else ""
    load = "" if cores["load"] is None else f"; load {cores['load']:.1f}"
    physical = f" of {_count(cores['physical'], 'core')}" if cores["physical"] else ""
    limit = "" if memory["limit"] is None else f", {_size(memory['limit'])} left by the container's limit"
    headers = "" if compilers["python_headers"] else "; Python's headers, which it needs too, are missing"
    return {
        "versions": ", ".join([*shown[:-1], versions["system"]]),
        "processor": f"{processor['name']}{'; a virtual machine' if processor['virtual'] else ''}",
        "flags": f"{', '.join(processor['flags']) or 'not told'}; torch uses {found['torch']['vectors']}",
        "processors": f"{cores['machine']}{physical}, of which {cores['usable']} may be used{quota}{load}",
        "threads": f"torch uses {found['threads']}",
        "memory": f"{_size(memory['total'])}, {_size(memory['available'])} available{limit}",
        "GPU": "; ".join(_gpu_text(gpu) for gpu in found["gpus"]) or _no_gpu(found),
        "C": compilers["c"] or "no compiler on the path",
        "C++": f"{compilers['c++'] or 'no compiler on the path'} (torch.compile's){headers}",
        **{name: version or "not installed" for name, version in found["packages"].items()},
        "disk": _disk_text(found["disk"], processor["virtual"]),
        "variables": ", ".join(f"{name}={text}" for name, text in found["environment"].items()) or "none of ours set",
    }


def _no_gpu(found: Json) -> str:
    cuda = found["torch"]["cuda"]
    built = f"torch is built for CUDA {cuda}" if cuda else "torch is built without CUDA"
    return "Apple's, as MPS" if found["mps"] else f"none that torch can use; {built}"


def _gpu_text(gpu: Json) -> str:
    shared = "" if gpu["shared_memory"] is None else f", {gpu['shared_memory'] >> 10} KiB shared memory a block"
    return (
        f"{gpu['name']}, compute capability {gpu['capability'][0]}.{gpu['capability'][1]}, "
        f"{_size(gpu['total'])}, {_size(gpu['free'])} free, {gpu['multiprocessors']} multiprocessors{shared}"
    )


def _disk_text(rate: Json, virtual: bool) -> str:
    text = "" if rate["write"] is None else f"writes {rate['write'] / 1e6:,.0f} MB/s"
    if rate["read"] is not None:
        text += f", reads {rate['read'] / 1e6:,.0f} MB/s"
    if rate["size"]:
        text += f" ({rate['size'] >> 20} MiB in {rate['folder']}"
        text += ", dropped from memory in between)" if rate["read"] is not None else ")"
        text += "; its host may have kept them" if virtual and rate["read"] is not None else ""
    return "; ".join(part for part in (text, rate["note"]) if part)


def _gpu(number: int) -> Json:
    seen = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    return {
        "name": seen.name,
        "capability": [seen.major, seen.minor],
        "total": total,
        "free": free,
        "multiprocessors": seen.multi_processor_count,
        "shared_memory": getattr(seen, "shared_memory_per_block_optin", None),
    }


def _compilers() -> Json:
    """What is on the path; the C++ compiler and Python's headers are what torch.compile needs on the CPU."""
    plus = [shlex.join(compiled.compiler("CXX", name)) for name in ("g++", "clang++", "c++")]
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return {
        "c": shlex.join(compiled.compiler()) or None,
        "c++": next(filter(None, plus), None),
        "python_headers": headers.is_file(),
    }


def _size(n: int | None) -> str:
    return "not told" if n is None else f"{n / 2**30:.1f} GiB"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
