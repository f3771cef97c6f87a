import pytest
import torch

from convnet import device
from convnet.errors import UsageError


def cpu(monkeypatch, tmp_path, flags):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse2\n\n", encoding="utf-8")
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")


def test_auto_finds_a_device_on_any_machine():
    chosen = device.choose()
    assert chosen.reason.startswith(str(chosen.device))
    assert chosen.threads == torch.get_num_threads()
    with chosen.autocast():
        torch.nn.Linear(2, 2).to(chosen.device)(torch.zeros(1, 2, device=chosen.device))


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_bf16_uses_it_unless_told_otherwise(monkeypatch, tmp_path, flag):
    cpu(monkeypatch, tmp_path, flag)
    assert device.choose(device="cpu").dtype == torch.bfloat16
    assert device.choose("bf16", "cpu").reason == f"cpu, bf16: a CPU with {flag}; asked for bf16"
    assert device.choose("fp32", "cpu").dtype == torch.float32


def test_a_cpu_without_bf16_uses_fp32(monkeypatch, tmp_path):
    cpu(monkeypatch, tmp_path, "avx2")
    chosen = device.choose(device="cpu")
    assert (chosen.dtype, chosen.reason) == (torch.float32, "cpu, fp32: a CPU without bf16 in hardware")
    with pytest.raises(UsageError, match="precision bf16 is not for a CPU without bf16 in hardware; use fp32 or auto"):
        device.choose("bf16", "cpu")
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "absent")
    assert device.choose(device="cpu").dtype == torch.float32


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_uses_bf16_from_ampere_on(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "a GPU")
    with torch.backends.cudnn.flags(benchmark=True):
        assert device.choose().dtype == dtype
        assert str(device.choose().device) == "cuda:0"
        assert str(device.choose(device="cuda:1").device) == "cuda:1"
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    with pytest.raises(UsageError, match="device 'cuda:2' is not there: 2 of its kind found"):
        device.choose(device="cuda:2")


def test_autocast_computes_in_the_chosen_type(monkeypatch, tmp_path):
    cpu(monkeypatch, tmp_path, "avx512_bf16")
    layer, images = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with device.choose(precision, "cpu").autocast():
            assert layer(images).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_what_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, text in [
        ("cuda", "device 'cuda' is not there: none found; use auto or cpu"),
        ("mps", "device 'mps' is not there"),
        ("gpu", "unknown device 'gpu'; use auto, cpu, cuda, cuda:N or mps"),
        ("meta", "device 'meta' is not supported"),
    ]:
        with pytest.raises(UsageError, match=text):
            device.choose(device=name)
    with pytest.raises(UsageError, match="precision 'fp16' must be auto, fp32 or bf16"):
        device.choose("fp16")
