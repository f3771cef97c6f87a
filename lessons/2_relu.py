# %% [markdown]
# # 2. Why ReLU?
#
# Data: CIFAR-10 (2,000 of its pictures). Time: about a minute, and half a minute for the store when it is the first
# lesson that needs one.
#
# Until 2012 a unit's output was mostly tanh(x). Section 3.1 of "ImageNet Classification with Deep Convolutional Neural
# Networks" (Krizhevsky, Sutskever and Hinton) says that "in terms of training time with gradient descent, these
# saturating nonlinearities are much slower than the non-saturating nonlinearity f(x) = max(0, x)", the ReLU. Its
# figure 1: a four-layer net with ReLUs reaches 25 % training error on CIFAR-10 six times faster than the same net with
# tanh, the rates "chosen independently to make training as fast as possible".
#
# We look where the slowness comes from. The whole figure is `convnet reproduce alexnet.fig1`, which takes hours.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import convnet

OUT = Path("runs/lessons/2_relu")
OUT.mkdir(parents=True, exist_ok=True)


# %%
def cifar10(n_train, n_test):
    """Training and test pictures, float (N, 3, 16, 16): halved, less the training pictures' mean, 0..255 scale."""
    folder = Path(os.environ.get("CONVNET_DATA", "data"), "cifar-10-batches-bin")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: lessons/README.md says where CIFAR-10 comes from")
    store, parts = convnet.prepare(folder, "runs/lessons/cifar10"), []
    for name, n in (("train", n_train), ("test", n_test)):
        dataset = convnet.StoreDataset(store, name)
        pictures, labels = zip(*(dataset[i] for i in range(n)), strict=True)
        parts.append((F.avg_pool2d(torch.stack(pictures).float(), 2), torch.tensor(labels)))
    (train, train_labels), (test, test_labels) = parts
    mean = train.mean(0)
    return train - mean, train_labels, test - mean, test_labels


images, labels, _, _ = cifar10(2000, 1)

# %% [markdown]
# ## Two nets that differ in one thing, and two ways to begin
#
# Three convolutions and a last layer: four layers, as in figure 1, but for smaller pictures. `old` begins as the paper
# does: pixels as they are and every weight from N(0, 0.01). `fitted` begins as is usual today: pixels divided by 64,
# so that they have a deviation of about 1, and weights whose size depends on how many inputs a unit reads and on what
# follows it (He and others 2015).


# %%
def net_of(nonlinearity, start, seed=0):
    """A net for (N, 3, 16, 16); nonlinearity: "relu" or "tanh", start: "old" or "fitted"."""
    torch.manual_seed(seed)
    function = {"relu": nn.ReLU, "tanh": nn.Tanh}[nonlinearity]
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, padding=2), function(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 5, padding=2), function(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), function(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.zeros_(layer.bias)
            if start == "old":
                nn.init.normal_(layer.weight, 0, 0.01)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
    return net


def images_for(start):
    return images if start == "old" else images / 64


# %% [markdown]
# ## How many units are saturated?
#
# The derivative of tanh is 1 - tanh(x)^2: 1 in the middle, and almost 0 where the unit says almost 1 or -1. A gradient
# that has to pass such a unit hardly arrives. What share of the first layer's units has a derivative below 0.1, at
# each start? Guess first.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
saturated = {}
for ax, start in zip(axes, ("old", "fitted"), strict=True):
    with torch.no_grad():
        said = net_of("tanh", start)[:2](images_for(start)[:200])
    saturated[start] = (1 - said.square() < 0.1).float().mean().item()
    ax.hist(said.flatten(), bins=40, range=(-1, 1), density=True)
    ax.set(title=f"{start}: {saturated[start]:.0%} saturated", xlabel="output of the first layer's tanh units")
axes[0].set_ylabel("density")
fig.savefig(OUT / "saturated.png")
print(saturated)

# %% [markdown]
# ## Training
#
# Eight epochs, batches of 32, momentum 0.9, no regularisation. Your prediction: which of these five is fastest, which
# slowest?


# %%
def fit(net, images, rate, epochs=8, seed=0):
    """Trains the net; gives the training error of each epoch, counted as the pictures come."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    generator, errors = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        wrong = 0
        for ids in torch.randperm(len(images), generator=generator).split(32):
            logits = net(images[ids])
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[ids]).backward()
            optimizer.step()
            wrong += (logits.argmax(1) != labels[ids]).sum().item()
        errors.append(wrong / len(images))
    return errors


trials = {  # of each start the rate of ReLU, and for tanh at the old start ten times that as well
    "ReLU, old start, rate 0.001": ("relu", "old", 0.001),
    "tanh, old start, rate 0.001": ("tanh", "old", 0.001),
    "tanh, old start, rate 0.01": ("tanh", "old", 0.01),
    "ReLU, fitted start, rate 0.01": ("relu", "fitted", 0.01),
    "tanh, fitted start, rate 0.01": ("tanh", "fitted", 0.01),
}
curves = {}
for name, (nonlinearity, start, rate) in trials.items():
    curves[name] = fit(net_of(nonlinearity, start), images_for(start), rate)
    print(f"{name:30}" + "".join(f"{error:7.1%}" for error in curves[name]))

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, errors in curves.items():
    colour = "tab:blue" if "ReLU" in name else "tab:red"
    line = "-" if "fitted" in name else ":" if name.endswith("0.01") else "--"
    ax.plot(range(1, len(errors) + 1), [100 * e for e in errors], line, color=colour, label=name)
ax.set(xlabel="epochs", ylabel="training error, %", ylim=(0, 100))
ax.legend(fontsize=8)
fig.savefig(OUT / "figure1.png")

# %% [markdown]
# ## What this shows, and what it can't
#
# At the old start about two thirds of the tanh units of the first layer are saturated before anything is learned, and
# with ReLU's rate tanh hardly moves: after eight epochs 79 % wrong against 58 %, with seed 1 78 against 59. So slow
# are saturated units. Most of it goes when tanh gets a rate of its own (63 and 60 %), as the paper gave it. With the
# fitted start, where few units are saturated, tanh isn't slower at all: here it is faster (16 against 43 %, 17 against
# 41).
#
# So ReLU's advantage is not that tanh can't learn fast. ReLU forgives: it has no saturation that large pixels or
# weights can push it into (exercise 2), and the paper's start was not fitted to the net.
#
# What we can't say: whether the factor is six. That was the whole of CIFAR-10 in 32 x 32, down to 25 %, and the best
# rate of many; here are 2,000 small pictures, one or two rates, two seeds. A training error says nothing of new
# pictures either: who learns 2,000 of them by heart first need not be the better net. And deeper nets multiply more
# derivatives, each below 1 for tanh.

# %% [markdown]
# ## Exercise 1: why the old start saturates
#
# A unit of the first layer adds up 5 x 5 x 3 = 75 products. If the weights are independent with deviation 0.01, the
# sum has the deviation 0.01 times the root of 75 times the mean square of the pixels. Which number is that? The
# derivative of tanh there: 1 - tanh(x)^2. (The check measures the deviation, which is smaller at the pictures' edges.)

# %%
answer = 0.01 * (75 * images.square().mean().item()) ** 0.5

with torch.no_grad():
    measured = net_of("tanh", "old")[0](images).std().item()
print(
    f"expected {answer:.1f}, measured {measured:.1f}; "
    f"tanh has the derivative {1 - torch.tensor(answer).tanh() ** 2:.1g}"
)
assert measured / 1.6 < answer < measured * 1.6, f"measured: {measured:.1f}; is it the root of 75 mean squares?"

# %% [markdown]
# ## Exercise 2: what ReLU doesn't mind
#
# All biases are 0 at the start. By which factor do a ReLU net's logits grow when all pixels are multiplied by 10?
# (This is why it can't be pushed into saturation.) And does the tanh net's largest logit grow by as much?

# %%
answer = 10.0

with torch.no_grad():
    small, large = (net_of("relu", "fitted")(images[:50] * scale / 64) for scale in (1, 10))
    bent = [net_of("tanh", "fitted")(images[:50] * scale / 64).abs().max().item() for scale in (1, 10)]
assert torch.allclose(large, answer * small, rtol=1e-3, atol=1e-3), "max(0, 10 x) = 10 max(0, x), layer by layer"
assert bent[1] < answer / 2 * bent[0], "tanh never says more than 1, so that its logits can't grow by as much"

# %% [markdown]
# ## Exercise 3: a fair comparison
#
# The paper chose the rates "independently". At the old start, by how many percentage points is ReLU ahead of tanh
# after the last epoch with the same rate, and by how many when tanh has the better rate of its two?

# %%
relu, same, own = (100 * curves[name][-1] for name in list(curves)[:3])
answer = (same - relu, min(same, own) - relu)
print(f"ahead by {answer[0]:.0f} points with the same rate, by {answer[1]:.0f} with its own")

assert abs(answer[0] + relu - same) < 1e-6, "the last values of the first two curves, in percent"
assert answer[0] > 5, "with one rate for both ReLU is far ahead: look at the order of your subtraction"
assert answer[1] < answer[0], "tanh's better rate brings it nearer: did you take the smaller error?"
