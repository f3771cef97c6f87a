"""Do weights give the same outputs here and in torchvision and timm? In steps, because those packages live elsewhere.

    python tests/peers.py write FOLDER     where torchvision and timm are installed: random nets, pictures, outputs
    python tests/peers.py compare FOLDER   where convnet is: imports each file and compares; exit code 1 above 1e-5

    python tests/peers.py export FOLDER    where convnet is: random nets under torchvision's names, pictures, outputs
    python tests/peers.py load FOLDER      where torchvision is: loads each file strictly and compares

The largest difference is relative to the largest output. Figures: docs/weights.md.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

LIMIT = 1e-5
N = 4
SCALINGS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,) * 3, (0.5,) * 3)}
# file: (our net, how pixels are scaled)
CASES = {
    "alexnet.pth": ("alexnet_owt", "imagenet"),
    "alexnet.safetensors": ("alexnet_owt", "imagenet"),
    "alexnet.legacy.pth": ("alexnet_owt", "imagenet"),
    "vgg11.pth": ("vgg_a", "imagenet"),
    "vgg16_bn.pth": ("vgg_d_bn", "imagenet"),
    "googlenet.pth": ("googlenet_bn", "imagenet"),
    "googlenet.half.pth": ("googlenet_bn", "half"),
    "timm.vgg11.safetensors": ("vgg_a", "imagenet"),
    "timm.vgg13_bn.safetensors": ("vgg_b_bn", "imagenet"),
}

EXPORTED = {"alexnet": "alexnet_owt", "vgg11": "vgg_a", "vgg16_bn": "vgg_d_bn", "googlenet": "googlenet_bn"}


def write(folder: Path) -> None:
    """Each net with random weights that keep the signal's size, its file, and its logits for the same pictures."""
    import timm
    import torchvision
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 256, (N, 224, 224, 3), np.uint8)
    np.save(folder / "pictures.npy", pictures)
    for file, (_, scaling) in CASES.items():
        torch.manual_seed(len(file))
        name = file.split(".")[-2] if file.startswith("timm") else file.split(".")[0]
        options = {"init_weights": True} if name == "googlenet" else {}
        net = timm.create_model(name) if file.startswith("timm") else getattr(torchvision.models, name)(**options)
        randomize(net)
        net.eval()
        mean, std = (torch.tensor(each)[:, None, None] for each in SCALINGS[scaling])
        images = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.no_grad():
            np.save(folder / f"{file}.npy", net(images).numpy())
        weights = net.state_dict()
        if file.endswith(".safetensors"):
            save_file(weights, folder / file)
        else:
            torch.save(weights, folder / file, _use_new_zipfile_serialization=".legacy." not in file)
        print(f"{file}: torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}")


def randomize(net: torch.nn.Module) -> None:
    """He's initial values, and batch norm with statistics that are not 0 and 1: a wrong place for any would show."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 1.5)):
                torch.nn.init.uniform_(values, low, high)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, 0, 0.1)


def compare(folder: Path) -> int:
    """Prints the largest difference for each file; 1 when one is above the limit."""
    from convnet.checkpoint import rebuild
    from convnet.data.augment import to_input
    from convnet.evaluation.views import centre
    from convnet.weights import read_weights

    pictures = np.load(folder / "pictures.npy")
    worst = 0.0
    for file, (net_name, scaling) in CASES.items():
        kept, report = read_weights(folder / file, net_name, pixels=scaling)
        how = centre(kept.preprocessing, N)
        images = to_input(pictures, how, kept.preprocessing, torch.device("cpu"))
        with torch.no_grad():
            ours = rebuild(kept)(images).numpy()
        theirs = np.load(folder / f"{file}.npy")
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        worst = max(worst, difference)
        print(f"{file:<28} {report.writer:<12} {net_name:<14} {len(report.rows):>4} tensors  {difference:.1e}")
    return int(worst > LIMIT)


def export_ours(folder: Path) -> None:
    """Our nets with random weights, a mean, a scale and an offset, under torchvision's names, and their logits."""
    from convnet.checkpoint import Checkpoint
    from convnet.data.augment import to_input
    from convnet.data.preprocess import Preprocessing
    from convnet.evaluation.views import centre
    from convnet.export import export
    from convnet.nets import create_model
    from convnet.recipe import Recipe

    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 256, (N, 224, 224, 3), np.uint8)
    np.save(folder / "pictures.npy", pictures)
    mean = np.asarray((100.0, 120.5, 90.25), np.float32)
    done = Preprocessing(size=256, pad=0, crop=224, channels="rgb", mean=mean, scale=0.02, offset=0.1)
    for theirs, ours in EXPORTED.items():
        torch.manual_seed(len(theirs))
        net = create_model(ours, num_classes=10, seed=0).eval()
        randomize(net)
        kept = Checkpoint(Recipe(net=ours), done, tuple("abcdefghij"), net.state_dict())
        export(kept, folder / f"{theirs}.safetensors", names="torchvision")
        images = to_input(pictures, centre(done, N), done, torch.device("cpu"))
        with torch.no_grad():
            np.save(folder / f"{theirs}.npy", net(images).numpy())


def load_there(folder: Path) -> int:
    """Prints the largest difference for each net of torchvision; 1 when one is above the limit."""
    import torchvision
    from safetensors import safe_open
    from safetensors.torch import load_file

    worst = 0.0
    for name in EXPORTED:
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            normalize = json.loads(file.metadata()["preprocessing"])["normalize"]
        options = {"init_weights": False} if name == "googlenet" else {}
        net = getattr(torchvision.models, name)(num_classes=10, **options).eval()
        net.load_state_dict(load_file(folder / f"{name}.safetensors"))
        mean, std = (torch.tensor(normalize[each])[:, None, None] for each in ("mean", "std"))
        with torch.no_grad():
            pixels = torch.from_numpy(np.load(folder / "pictures.npy")).permute(0, 3, 1, 2).float()
            found = net((pixels / 255 - mean) / std).numpy()
        expected = np.load(folder / f"{name}.npy")
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        worst = max(worst, difference)
        print(f"{name:<12} torchvision {torchvision.__version__}  {difference:.1e}")
    return int(worst > LIMIT)


STEPS = {"write": write, "compare": compare, "export": export_ours, "load": load_there}

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(STEPS[sys.argv[1]](Path(sys.argv[2])))
