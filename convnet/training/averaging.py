"""Which processes average whose gradients, and in what? By torch's DistributedDataParallel, while backward runs."""

import warnings

from torch import Tensor, nn

from convnet.io.processes import Processes
from convnet.nets.batch_norm import has_batch_norm
from convnet.nets.connected_parallel import parts_in
from convnet.nets.layers import Net
from convnet.recipe import Recipe


def averaged(net: Net, sharing: Processes, recipe: Recipe) -> nn.parallel.DistributedDataParallel:
    """The net's forward pass to all of its heads, which leaves the mean over `sharing` of gradients, but for those
    of the parts of layers that a process has alone."""
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of one-channel kernels
    warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated")  # its successor is of torch 2.13
    heads, normed = _Heads(net), has_batch_norm(net)  # whose buffers are the first one's
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(heads, parts_in(heads))
    result = nn.parallel.DistributedDataParallel(heads, broadcast_buffers=normed, process_group=sharing.group)
    if recipe.sent_gradients == "bf16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook as in_bf16

        # in a lambda: under its name torch takes this hook for NCCL alone, and gloo adds up bfloat16 as well
        result.register_comm_hook(sharing.group, lambda group, bucket: in_bf16(group, bucket))
    return result


def layout(processes: Processes, recipe: Recipe) -> str:
    """How many processes train, and what they do otherwise than one; with others a run can go on, but not bitwise."""
    text = str(processes.n)
    if processes.split:
        text += " (fully connected layers split)"
    elif processes.holders.n > 1:
        text += f" ({processes.holders.n} columns)"
    if processes.data.n > 1:
        text += ", gradients averaged in " + recipe.sent_gradients
        text += ", batch norm over whole batches" if recipe.sync_batch_norm else ""
    return text


class _Heads(nn.Module):
    """A net's forward pass to all of its heads, as a module: what DistributedDataParallel wraps."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net.heads(images)
