# %% [markdown]
# # 7. What do ten crops, dense evaluation and two nets give?
#
# Data: CIFAR-10 (3,000 pictures to learn from, 2,000 to test on). Time: about a minute, and half a minute for the
# store when it is the first lesson that needs one.
#
# A net that reads crops can be shown several of a picture. AlexNet's paper (Krizhevsky, Sutskever and Hinton 2012,
# section 4.1) averages its answers to "five 224 x 224 patches (the four corner patches and the center patch) as well
# as their horizontal reflections": on ImageNet 2010 ten crops have a top-1 error of 37.5 %, one has 39.0. VGG
# (Simonyan and Zisserman 2014, section 3.2) lets the net slide over the whole picture, "dense", at several sizes. And
# several nets can be averaged: AlexNet's five have 38.1 % on ImageNet 2012, one alone 40.7 %.
#
# All this costs only time at the test. What does it give here, and how sure can we be?

# %%
import os
from math import comb
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import convnet

OUT = Path("runs/lessons/7_ten_crops")
OUT.mkdir(parents=True, exist_ok=True)
CROP = 12  # pixels, of pictures of 16


# %%
def cifar10(n_train, n_test):
    """Training and test pictures, float (N, 3, 16, 16): halved, less the training pictures' mean, deviation about 1."""
    folder = Path(os.environ.get("CONVNET_DATA", "data"), "cifar-10-batches-bin")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: lessons/README.md says where CIFAR-10 comes from")
    store, parts = convnet.prepare(folder, "runs/lessons/cifar10"), []
    for name, n in (("train", n_train), ("test", n_test)):
        dataset = convnet.StoreDataset(store, name)
        pictures, labels = zip(*(dataset[i] for i in range(n)), strict=True)
        parts.append((F.avg_pool2d(torch.stack(pictures).float(), 2) / 64, torch.tensor(labels)))
    (train, train_labels), (test, test_labels) = parts
    mean = train.mean((0, 2, 3), keepdim=True)
    return train - mean, train_labels, test - mean, test_labels


images, labels, test_images, test_labels = cifar10(3000, 2000)

# %% [markdown]
# ## Two nets
#
# The same net with two seeds, for crops of 12 x 12 from pictures of 16 x 16, at random places, half of them mirrored.
# Its last layer is written as a convolution: on a crop it makes one place of class scores, on a larger picture
# several.


# %%
def net_of(seed):
    """(N, 3, H, W) -> class scores (N, 10, H / 4 - 2, W / 4 - 2)."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Conv2d(128, 10, 1)),
    )
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net


def fit(net, seed, epochs=12, rate=0.01):
    """Trains the net; the last two epochs with a tenth of the rate. Gives the net."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate if epoch < epochs - 2 else rate / 10
        for ids in torch.randperm(len(images), generator=generator).split(32):
            top, left, mirror = (int(torch.randint(0, n, (1,), generator=generator)) for n in (5, 5, 2))
            batch = images[ids, :, top : top + CROP, left : left + CROP]
            loss = F.cross_entropy(net(batch.flip(3) if mirror else batch).flatten(1), labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


nets = [fit(net_of(seed), seed) for seed in (0, 1)]

# %% [markdown]
# ## The protocols
#
# Each gives the probabilities (N, 10) of pictures. `dense` averages the class scores over their places, then takes the
# softmax, for the picture and its mirror; at several sizes the probabilities are averaged. (For a trained run the
# library has all of them: `convnet.load(run).evaluate(store, views="ten-crop")`.) By how much will the error fall?

# %%
MIDDLE, CORNERS = [(2, 2)], [(0, 0), (0, 4), (4, 0), (4, 4)]


@torch.no_grad()
def crops(net, images, places, mirrors):
    """The mean over crops at these places (top, left), and over their mirrors."""
    views = [images[:, :, top : top + CROP, left : left + CROP] for top, left in places]
    views += [view.flip(3) for view in views] if mirrors else []
    return torch.stack([net(view).flatten(1).softmax(1) for view in views]).mean(0)


@torch.no_grad()
def dense(net, images, sides=(16,)):
    """The mean over the picture and its mirror, scaled to each of these sides."""
    found = []
    for side in sides:
        scaled = images if side == 16 else F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        found += [net(view).mean((2, 3)).softmax(1) for view in (scaled, scaled.flip(3))]
    return torch.stack(found).mean(0)


protocols = {
    "one crop": lambda net: crops(net, test_images, MIDDLE, False),
    "one crop and its mirror": lambda net: crops(net, test_images, MIDDLE, True),
    "ten crops": lambda net: crops(net, test_images, MIDDLE + CORNERS, True),
    "dense": lambda net: dense(net, test_images),
    "dense at 14, 16, 18": lambda net: dense(net, test_images, (14, 16, 18)),
}
probabilities = {(name, i): ask(net) for name, ask in protocols.items() for i, net in enumerate(nets)}
for name in protocols:  # the third "net" is both
    probabilities[name, 2] = (probabilities[name, 0] + probabilities[name, 1]) / 2
wrong = {key: (p.argmax(1) != test_labels).numpy() for key, p in probabilities.items()}


def interval(rate, n):
    """The 95 % interval of a rate measured on n pictures, by Wilson's formula (1927)."""
    centre, half = rate + 1.92 / n, 1.96 * (rate * (1 - rate) / n + 0.96 / n**2) ** 0.5
    return (centre - half) / (1 + 3.84 / n), (centre + half) / (1 + 3.84 / n)


for name in protocols:
    texts = []
    for i in range(3):
        low, high = interval(wrong[name, i].mean(), len(test_labels))
        texts.append(f"{wrong[name, i].mean():.1%} ({low:.1%} to {high:.1%})")
    print(f"{name:24} net 0 {texts[0]}, net 1 {texts[1]}, both {texts[2]}")

# %% [markdown]
# ## How sure?
#
# The intervals are wide, and overlap. But all were asked about the *same* pictures: only those count that
# one gets right and the other wrong. If both were equally good, each such picture would be a coin. How probable is it
# that coins fall as unevenly as this, or more? (McNemar's test.)


# %%
def chance(one, other):
    """How many pictures only `one` (N,) gets wrong, how many only `other`, and how probable so uneven coins are."""
    mended, broken = int((one & ~other).sum()), int((~one & other).sum())
    n, fewer = mended + broken, min(mended, broken)
    return mended, broken, min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)


pairs = {f"{name}, net {i}": (("one crop", i), (name, i)) for name in list(protocols)[1:] for i in (0, 1)}
pairs |= {f"both nets, not net {i}": (("one crop", i), ("one crop", 2)) for i in (0, 1)}
pairs |= {"net 1, not net 0": (("one crop", 0), ("one crop", 1))}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for row, (title, (before, after)) in enumerate(pairs.items()):
    mended, broken, p = chance(wrong[before], wrong[after])
    difference = wrong[before].astype(float) - wrong[after]
    half = 196 * difference.std() / len(difference) ** 0.5
    ax.errorbar(100 * difference.mean(), row, xerr=half, fmt="o", color="tab:blue", capsize=3)
    print(f"{title:32} mends {mended:3}, breaks {broken:3}: {100 * difference.mean():+.1f} points, p = {p:.2g}")
ax.axvline(0, color="grey", linewidth=0.8)
ax.axvline(1.5, color="tab:red", linestyle=":", label="ten crops in the paper")
ax.set_yticks(range(len(pairs)), pairs)
ax.set(xlabel="points fewer errors than one crop of one net", ylim=(len(pairs) - 0.5, -0.5))
ax.legend(fontsize=8)
fig.savefig(OUT / "protocols.png")

# %% [markdown]
# ## What this shows, and what it can't
#
# Ten crops mend more than they break: 50.4 to 48.9 % with one net, 50.8 to 48.7 with the other, about what the paper
# gains. The second net's p is 0.015, the first one's 0.075. The mirror alone gives much of that. Both nets together
# have 49.1 %, with ten crops 47.1: the two gains add up. The intervals of all these errors overlap; only the paired
# test, which looks at the same pictures, sees differences.
#
# Dense evaluation is *worse* here than one crop (51.8 and 53.5 %), and other sizes are worse still. VGG's table 5 has
# dense and 50 crops within 0.3 points of each other. A likely reason, which VGG names too, is the border: our net was
# trained on crops whose edges are padded with zeros, and in 12 pixels nearly everything is near an edge; where it
# slides there are pixels instead. In VGG's crops of 224 the border is a small part. And it was trained at one size
# only.
#
# What we can't say: that dense is bad, or that ten crops always give 1.5 points. Eleven comparisons were made, so that
# a p of 0.05 isn't rare by chance; two seeds show how a net differs from its twin (one is 0.4 points ahead on one
# crop), no more.
# %% [markdown]
# ## Exercise 1: dense is many crops
#
# On a picture of 16 x 16 the net makes 2 x 2 places of class scores, on one of 12 x 12 a single one. By how many
# pixels are two places apart? The check moves pictures by 1 to 8 pixels and looks when a place says what the next one
# said.

# %%
answer = 2 * 2

with torch.no_grad():
    wide, inner = F.pad(test_images[:20], (8, 24, 8, 8)), slice(2, 7)  # inner: away from the edges
    next_places = nets[0](wide)[..., 1:][..., inner]
    moved = {n: nets[0](wide.roll(-n, 3))[..., inner] for n in range(1, 9)}
moves = [n for n, places in moved.items() if torch.allclose(places, next_places, atol=1e-4)]
assert [answer] == moves, (
    f"moved by {moves} pixels the picture gives the next place's scores: two pools, of stride 2 each"
)

# %% [markdown]
# ## Exercise 2: how many test pictures?
#
# The 95 % interval of an error p measured on n pictures reaches about 1.96 sqrt(p (1 - p) / n) to both sides.
# AlexNet's 40.7 % is measured on 50,000: how far does it reach, in percentage points? And ours, if p is 40.7 % too, on
# 2,000?

# %%
answer = tuple(196 * (0.407 * 0.593 / n) ** 0.5 for n in (50_000, 2_000))

generator = np.random.default_rng(0)
for_large, for_small = (196 * (generator.binomial(n, 0.407, 20_000) / n).std() for n in (50_000, 2_000))
assert abs(answer[0] / for_large - 1) < 0.05, f"throwing coins gives {for_large:.2f} points for 50,000 pictures"
assert abs(answer[1] / for_small - 1) < 0.05, f"throwing coins gives {for_small:.2f} points for 2,000 pictures"

# %% [markdown]
# ## Exercise 3: why averaging can't be worse than the average
#
# The loss is -log of the true class's probability. The logarithm is concave, so that the loss of the mean probability
# is at most the mean of the losses, for every picture (errors have no such rule). Compute both numbers for one crop of
# our two nets: (loss of the mean, mean of the losses).

# %%
of_truth = torch.stack([probabilities["one crop", i].gather(1, test_labels[:, None])[:, 0] for i in (0, 1)])
answer = (-of_truth.mean(0).log().mean().item(), -of_truth.log().mean().item())

first, second, both = (F.nll_loss(probabilities["one crop", i].log(), test_labels).item() for i in range(3))
assert abs(answer[0] - both) < 1e-4, "first average the probabilities, then take the logarithm"
assert abs(answer[1] - (first + second) / 2) < 1e-4, "each net's loss, then their mean"
assert answer[0] <= answer[1], "the loss of the mean is never larger: are the two numbers exchanged?"
