"""The form in C of ReLU, response norm and pooling against the plain one: values and gradients, and life without it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.io.cache import own_folder
from convnet.kernels.cpu import compiled
from convnet.kernels.cpu import norm_pool as norm_pool_cpu
from convnet.kernels.ops import norm_pool
from convnet.kernels.plain import Block, plain_response_norm
from convnet.nets import create_model, trace

needs_compiler = pytest.mark.skipif(compiled.library()[0] is None, reason=compiled.state())


def plain(x: Tensor, block: Block) -> Tensor:
    """Layer by layer, each group of maps by itself."""
    x = F.relu(x) if block.relu_before else x
    if block.n:
        constants = (block.n, block.k, block.alpha, block.beta)
        x = torch.cat([plain_response_norm(part, *constants) for part in x.chunk(block.groups, 1)], 1)
    x = F.max_pool2d(x, block.size, block.stride, ceil_mode=block.ceil)
    return F.relu(x) if block.relu_after else x


MAPS = [1, 3, 7, 15, 16, 17, 32, 40]  # whole vectors, and parts of them
blocks = st.builds(
    Block,
    n=st.integers(0, 9),
    k=st.sampled_from([1.0, 2.0]),
    alpha=st.sampled_from([1e-4, 0.01, 0.3]),
    beta=st.sampled_from([0.75, 0.5, 1.0]),
    groups=st.integers(1, 3),
    size=st.integers(1, 4),
    stride=st.integers(1, 4),
    ceil=st.booleans(),
    relu_before=st.booleans(),
    relu_after=st.booleans(),
)


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(
    blocks,
    st.integers(1, 3),
    st.sampled_from([1, 3, 7, 15, 16, 17, 32, 40]),
    st.integers(4, 11),
    st.integers(4, 11),
    st.integers(0, 2**31),
)
def test_equals_the_plain_form_in_fp32(block: Block, n: int, maps: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, maps * block.groups, height, width, generator=generator) * 3
    wide = x.double().requires_grad_()
    x.requires_grad_()
    expected, found = plain(wide, block), norm_pool(x, block)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    g = torch.randn(expected.shape, generator=generator)
    expected.backward(g.double())
    found.backward(g)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5 * float(g.abs().max()))


@needs_compiler
@pytest.mark.parametrize("maps", [1, 96, 256])
def test_bf16_is_within_its_rounding(maps: int) -> None:
    """Rounded where the plain form rounds, so that the same value of a window is the largest."""
    block = Block(5, 2.0, 1e-4, 0.75, size=3, stride=2, relu_before=True)
    x = (torch.randn(3, maps, 13, 14, generator=torch.Generator().manual_seed(0)) * 40).bfloat16()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = plain(one, block), norm_pool(other, block)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected.backward(g)
    found.backward(g)
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-2, atol=1e-2 * float(one.grad.abs().max()))


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(blocks, st.sampled_from([5, 16, 48]), st.integers(4, 9), st.integers(0, 2**31))
def test_bf16_forward_is_the_plain_forms_but_for_its_last_bit(block: Block, maps: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(2, maps * block.groups, side, side + 1, generator=generator) * 3).bfloat16()
    torch.testing.assert_close(norm_pool(x, block), plain(x, block), rtol=1e-2, atol=1e-30)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "stride", "ceil"), [(2, 2, False), (3, 2, False), (3, 2, True), (3, 1, False)])
def test_pooling_alone_is_torchs_to_the_bit(dtype: torch.dtype, size: int, stride: int, ceil: bool) -> None:
    x = torch.randn(2, 48, 13, 14, generator=torch.Generator().manual_seed(3)).to(dtype)
    block = Block(size=size, stride=stride, ceil=ceil)
    expected, indices = F.max_pool2d(x, size, stride, ceil_mode=ceil, return_indices=True)
    one = x.clone().requires_grad_()
    found = norm_pool(one, block)
    assert torch.equal(found, expected)
    g = torch.ones_like(expected)
    found.backward(g)
    counts = torch.zeros(2, 48, 13 * 14).scatter_add_(2, indices.flatten(2), torch.ones(indices.flatten(2).shape))
    assert torch.equal(one.grad.float().flatten(2), counts)


@needs_compiler
def test_a_gradients_gradient_is_the_plain_forms() -> None:
    block = Block(5, 2.0, 0.01, 0.75, size=3, stride=2, relu_before=True)
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(4))
    seconds = []
    for form in (norm_pool, plain):
        own = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(form(own, block).square().sum(), own, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), own)[0])
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_ties_nan_and_infinity_are_as_in_torch() -> None:
    block = Block(5, 2.0, 1e-4, 0.75, size=3, stride=2, relu_before=True)
    ties = torch.ones(1, 8, 9, 9).requires_grad_()
    again = ties.detach().clone().requires_grad_()
    plain(ties, block).sum().backward()
    norm_pool(again, block).sum().backward()
    torch.testing.assert_close(again.grad, ties.grad, rtol=1e-5, atol=1e-6)
    for value in (float("nan"), float("inf")):
        x = torch.randn(1, 8, 9, 9)
        x[0, 3, 4, 4] = value
        expected, found = plain(x, block), norm_pool(x, block)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert found.isnan().any()


@needs_compiler
def test_threads_change_nothing() -> None:
    block = Block(5, 2.0, 1e-4, 0.75, size=3, stride=2, relu_before=True)
    x, g = torch.randn(7, 16, 15, 15), torch.randn(7, 16, 7, 7)
    former, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 9):
            torch.set_num_threads(n)
            own = x.clone().requires_grad_()
            y = norm_pool(own, block)
            y.backward(g)
            results.append((y.detach(), own.grad))
    finally:
        torch.set_num_threads(former)
    assert all(torch.equal(y, results[0][0]) and torch.equal(dx, results[0][1]) for y, dx in results[1:])


FORKED = """
import os, torch
from convnet.kernels.ops import norm_pool
from convnet.kernels.plain import Block
torch.set_num_threads(2)
x, block = torch.ones(4, 3, 5, 5), Block(size=2)
norm_pool(x, block)
child = os.fork()
if child == 0:
    norm_pool(x, block)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert done.stdout.strip() == "7"


@needs_compiler
def test_alexnet_in_one_pass_is_alexnet_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    net = create_model("alexnet", num_classes=3, init="fan-in", seed=0).eval()
    images = torch.randn(2, 3, 224, 224) * 60
    with torch.inference_mode():
        fused, staged = net(images), trace(net, images)["fc8"]
        torch.testing.assert_close(fused, staged, rtol=0, atol=1e-5 * float(staged.abs().max()))
        monkeypatch.setattr(norm_pool_cpu, "available", lambda x, block: False)
        torch.testing.assert_close(net(images), staged, rtol=0, atol=1e-5 * float(staged.abs().max()))
    assert staged.std(0).max() > 1e-3 * staged.abs().max()


State = Callable[..., str]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    """state(CC="gcc", ...) -> whether the plain forms serve, and why: what a new process would say whose only source
    is a line of C."""
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }\n", encoding="utf-8")
    monkeypatch.setattr(compiled, "SOURCES", (source,))
    monkeypatch.delenv("CONVNET_KERNELS", raising=False)

    def told(**environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            library, text = compiled.library.__wrapped__()
            return f"{library is None} {text}"

    return told


def test_without_a_compiler_the_plain_forms_serve_and_say_so(state: State, tmp_path: Path) -> None:
    assert state(CONVNET_KERNELS="plain") == "True plain forms, as CONVNET_KERNELS=plain asks"
    assert state(CC="no-such-compiler").startswith("True plain forms: no C compiler (cc) was found")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'out of luck' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    assert state(CC=str(broken), XDG_CACHE_HOME=str(tmp_path)) == f"True plain forms: {broken} failed: out of luck"
    assert list((tmp_path / "convnet").iterdir()) == []


@needs_compiler
def test_the_library_is_compiled_once(state: State, tmp_path: Path) -> None:
    first = state(XDG_CACHE_HOME=str(tmp_path))
    (built,) = (tmp_path / "convnet").iterdir()
    written = built.stat().st_mtime_ns
    assert state(XDG_CACHE_HOME=str(tmp_path)) == first
    assert built.stat().st_mtime_ns == written
    assert first.startswith("False compiled forms, by ")


@needs_compiler
def test_a_library_that_was_cut_short_or_changed_is_compiled_again(state: State, tmp_path: Path) -> None:
    good = state(XDG_CACHE_HOME=str(tmp_path))
    (built,) = (tmp_path / "convnet").iterdir()
    whole = built.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:5000], whole[:-1], b"", bytes(flipped)):
        built.write_bytes(damaged)
        assert state(XDG_CACHE_HOME=str(tmp_path)) == good
        assert [path.read_bytes() for path in (tmp_path / "convnet").iterdir()] == [whole]


@needs_compiler
def test_a_cache_that_others_may_write_to_is_left_alone(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "convnet"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_folder() == (None, f"others may write to {folder}; chmod go-w {folder}")
    assert state().startswith("False compiled forms, by ")
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert own_folder() == (None, f"{folder} is a link or another user's")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    reason = own_folder()[1]
    assert reason.startswith("no folder can be made there")
    assert state().startswith("False compiled forms, by ")


@needs_compiler
def test_cc_may_have_flags(state: State, tmp_path: Path) -> None:
    told = state(CC=f"{shutil.which('cc')} -O2", XDG_CACHE_HOME=str(tmp_path))
    assert told == f"False compiled forms, by {shutil.which('cc')} -O2"
    assert state(CC='"cc').startswith("True plain forms: no C compiler")


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert own_folder() == (None, "no folder can be made there (Could not determine home directory.)")
