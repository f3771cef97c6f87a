"""How the operations of ops.py are made known to torch."""

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("convnet", "DEF")
OPS = torch.ops.convnet


def operation(schema: str, function: Callable[..., object], plain: Callable[..., object]) -> None:
    """Registers an operation that is composed of others; the transforms of torch.func get its plain form."""
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, function, "CompositeImplicitAutograd")
    LIBRARY.impl(name, plain, "FuncTorchDynamicLayerFrontMode")


def kernel(schema: str, function: Callable[..., object], fake: Callable[..., object]) -> None:
    """Registers a kernel, which has no gradient, for the CPU and CUDA. fake: what comes out, without its values."""
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, function, key)
    torch.library.register_fake(f"convnet::{name}", fake, lib=LIBRARY)


def constant(function: Callable[[], bool]) -> Callable[[], bool]:
    """`torch.compiler.assume_constant_result`, which would load the compiler, 2 s: a compiled net asks once."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function
