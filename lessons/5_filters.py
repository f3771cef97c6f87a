# %% [markdown]
# # 5. What did the filters become?
#
# Data: the trained convolutions of Caffe's AlexNet (`alexnet-bvlc-conv`) and 200 photos of imagenette. Time: about
# half a minute.
#
# AlexNet's first layer begins as noise. After training, says section 6.1 of the paper (Krizhevsky, Sutskever and
# Hinton 2012), it holds "a variety of frequency- and orientation-selective kernels, as well as various colored blobs",
# and the two columns have specialised: "the kernels on GPU 1 are largely color-agnostic, while the kernels on GPU 2
# are largely color-specific", in every run. Deeper layers can't be drawn so: Zeiler and Fergus (2013, section 2.1) ask
# instead which pictures excite a map most, and which of their pixels did it.
#
# We measure the first claim and look with the second method.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import convnet

OUT = Path("runs/lessons/5_filters")
OUT.mkdir(parents=True, exist_ok=True)
DATA = Path(os.environ.get("CONVNET_DATA", "data"))

# %% [markdown]
# ## A fresh net, and a trained one
#
# Both have the same layers, `alexnet_caffe`: the paper's, in two columns, for pictures of 227 x 227. The file holds
# only conv1 to conv5; we don't need more. Caffe reads blue first, this library red first, so that conv1's inputs are
# turned.


# %%
def trained_net():
    """alexnet_caffe with the trained convolutions, and the mean colour that it expects to be subtracted, RGB (3,)."""
    file = DATA / "alexnet-bvlc-conv" / "conv1-5.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: lessons/README.md says where it comes from")
    arrays = {name: torch.from_numpy(array.astype(np.float32)) for name, array in np.load(file).items()}
    arrays["conv1.weight"] = arrays["conv1.weight"].flip(1)
    net = convnet.create_model("alexnet_caffe", seed=0).eval()
    with torch.no_grad():
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
            layer = getattr(net, name)
            columns = layer if isinstance(layer, nn.ModuleList | nn.Sequential) else [layer]
            for kind in ("weight", "bias"):
                for column, values in zip(columns, arrays[f"{name}.{kind}"].chunk(len(columns)), strict=True):
                    getattr(column, kind).copy_(values)
    return net, arrays["mean_bgr"].flip(0)


fresh = convnet.create_model("alexnet_caffe", seed=0)
net, mean = trained_net()

# %% [markdown]
# ## Before and after
#
# Each kernel is scaled by its own largest weight, 0 is grey. Before you look: how many of the 96 will be coloured?


# %%
def sheet(kernels, columns=12):
    """The pictures of kernels (O, 3, h, w) side by side, (rows, columns, 3) in 0..1."""
    scaled = 0.5 + kernels / (2 * np.abs(kernels).max((1, 2, 3), keepdims=True))
    tiles = np.pad(scaled.transpose(0, 2, 3, 1), ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
    return np.concatenate([np.concatenate(list(row), 1) for row in np.split(tiles, len(tiles) // columns)])


before, after = convnet.visualize.filters(fresh), convnet.visualize.filters(net)
fig, axes = plt.subplots(2, 2, figsize=(8, 3.6), layout="constrained")
for row, (name, shown) in zip(axes, (("fresh", before), ("trained", after)), strict=True):
    for column, ax in enumerate(row):
        ax.imshow(sheet(shown.columns[column]))
        ax.set_title(f"{name}, column {column + 1}: {shown.column_colour[column]:.0%} colour", fontsize=9)
        ax.set_axis_off()
fig.savefig(OUT / "conv1.png")

# %% [markdown]
# ## Figure 3's specialisation, as numbers
#
# "Colour" is the share of a column's energy that is not equal in red, green and blue: 0 for grey kernels, 2/3 for
# noise. "Selectivity" is 1 for a grating of one direction and 0 for a round blob; "frequency" is in cycles per pixel.

# %%
for name, which in (("fresh", fresh), ("trained", net)):
    for i, column in enumerate(convnet.visualize.specialisation(which).columns):
        print(
            f"{name:8} column {i + 1}: colour, median kernel {np.median(column.colour):.2f}; "
            f"selectivity {np.median(column.selectivity):.2f}; frequency {np.median(column.frequency):.2f}"
        )

# %% [markdown]
# ## Deeper: which pictures excite a map?
#
# A kernel of conv5 reads 192 maps: drawn, it says nothing. So we show the net 200 photos and keep, for four maps of
# conv5, the five photos with the strongest unit.


# %%
def photos(n_each):
    """n_each photos of each class as the net takes them, (N, 3, 227, 227) less the mean, 0..255 scale."""
    folder = DATA / "imagenette" / "val"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: lessons/README.md says where imagenette comes from")
    images = []
    for path in (path for each in sorted(folder.iterdir()) for path in sorted(each.iterdir())[:n_each]):
        pixels = torch.from_numpy(plt.imread(path).copy())
        pixels = pixels[..., None].expand(-1, -1, 3) if pixels.ndim == 2 else pixels  # some are grey
        image = F.interpolate(pixels.permute(2, 0, 1)[None].float(), (227, 227), mode="bilinear", antialias=True)
        images.append(image - mean.view(3, 1, 1))
    return torch.cat(images)


images = photos(20)
conv5 = torch.cat([convnet.trace(net, part, ["relu5"])["relu5"] for part in images.split(20)])  # (200, 256, 13, 13)
strongest = conv5.amax((2, 3))  # (200, 256): of each photo and map its strongest unit
maps = strongest.topk(5, 0).values.mean(0).topk(4).indices.tolist()
print("maps of conv5 with the strongest units:", maps)

# %% [markdown]
# ## And which pixels did it?
#
# The deconvnet takes the one unit down again: it unpools by the places of the maxima, rectifies, and filters with the
# transposed kernels. What arrives is what the activation is made of. It is drawn where the unit looks.

# %%
fig, axes = plt.subplots(8, 5, figsize=(6, 10), layout="constrained")
for row, which in enumerate(maps):
    best = strongest[:, which].topk(5).indices
    places = [divmod(int(conv5[i, which].argmax()), 13) for i in best]
    units = [convnet.visualize.Unit(which, *place) for place in places]
    projected = convnet.visualize.deconv(net, images[best], "relu5", units).pixels
    for column, i in enumerate(best):
        picture = (images[i] + mean.view(3, 1, 1)).permute(1, 2, 0).clamp(0, 255).byte().numpy()
        axes[2 * row, column].imshow(picture)
        axes[2 * row + 1, column].imshow(0.5 + projected[column] / (2 * np.abs(projected[column]).max()))
    axes[2 * row, 0].set_title(f"map {which}", fontsize=8, loc="left")
for ax in axes.flat:
    ax.set_axis_off()
fig.savefig(OUT / "conv5.png")

# %% [markdown]
# ## What this shows, and what it can't
#
# The fresh columns are alike: 66 % colour, no direction. In the trained net 82 % of one column's energy is colour and
# 12 % of the other's; the grey column's kernels are the more selective ones (median 0.83 against 0.45) and the finer
# ones (0.21 against 0.18 cycles per pixel). This is the paper's claim, on a net that others trained. Which column it
# is was chance: here it is the first that sees colour, in the paper the second.
#
# Of the maps that answer most strongly to these photos, 161 finds faces: of anglers and of horn players alike. 175
# finds writing, 172 round things with a dark middle (an eye, a lens, a wheel), 86 wheels and arches. No class of
# ImageNet is "writing": the net made it as a part of others.
#
# What we can't say: that columns *always* specialise. This is one net, and one without columns has both kinds of
# kernels as well. That 161 "is" a face detector is our reading of five photos among 200; a sixth may show something
# else (try it), and the deconvnet shows what the unit was made of, not what it would miss. Four maps were chosen for
# being strong; most of the 256 have no such simple name.
# %% [markdown]
# ## Exercise 1: what two columns save
#
# conv2 has 256 kernels of 5 x 5. Each reads only the 48 maps of its own column. How many parameters has conv2, and how
# many would it have if each kernel read all 96 maps?

# %%
answer = (256 * 5 * 5 * 48 + 256, 256 * 5 * 5 * 96 + 256)

assert answer[0] == sum(p.numel() for p in net.conv2.parameters()), "25 x 48 weights and one bias for each kernel"
assert answer[1] == sum(p.numel() for p in nn.Conv2d(96, 256, 5).parameters()), "25 x 96 weights and one bias"

# %% [markdown]
# ## Exercise 2: how far does a unit of conv5 see?
#
# conv1: 11 x 11, stride 4; pool1: 3 x 3, stride 2; conv2: 5 x 5; pool2: 3 x 3, stride 2; conv3, conv4, conv5: 3 x 3.
# Begin with 1 pixel and a step of 1. Each layer adds (its size - 1) steps, and multiplies the step by its stride. How
# many pixels wide is what a unit of conv5 sees? The check sends a signal back through layers that let everything pass.

# %%
sizes, strides = (11, 3, 5, 3, 3, 3, 3), (4, 2, 1, 2, 1, 1, 1)
width, step = 1, 1
for size, stride in zip(sizes, strides, strict=True):
    width += (size - 1) * step
    step *= stride
answer = width

line = torch.ones(1, 1, 227, requires_grad=True)
signal = line
for size, stride, padding in zip(sizes, strides, (0, 0, 2, 0, 1, 1, 1), strict=True):
    signal = F.conv1d(signal, torch.ones(1, 1, size), stride=stride, padding=padding)
signal[0, 0, 6].backward()  # the middle one of 13
sees = int((line.grad != 0).sum())
assert answer == sees, f"the middle unit of 13 sees {sees} pixels: did you multiply the step after adding?"

# %% [markdown]
# ## Exercise 3: why noise is 2/3 colour
#
# Three numbers are sampled independently, with mean 0 and variance 1, for red, green and blue. Their mean, the grey,
# has variance 1/3. Which share of the energy is left as colour? And which would it be with C channels instead of 3,
# say 12?

# %%
answer = (1 - 1 / 3, 1 - 1 / 12)

noise = np.random.default_rng(0).standard_normal((2000, 12, 5, 5))
measured = [((part - part.mean(1, keepdims=True)) ** 2).sum() / (part**2).sum() for part in (noise[:, :3], noise)]
assert abs(answer[0] - measured[0]) < 0.01, f"measured on noise of 3 channels: {measured[0]:.3f}"
assert abs(answer[1] - measured[1]) < 0.01, f"measured on noise of 12 channels: {measured[1]:.3f}"
assert all(abs(answer[0] - share) < 0.02 for share in before.column_colour), "and a fresh net has as much"
