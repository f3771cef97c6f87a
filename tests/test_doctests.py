"""Every example in a docstring is run."""

import doctest
import importlib
import pkgutil

import pytest

import convnet

MODULES = ["convnet", *(module.name for module in pkgutil.walk_packages(convnet.__path__, "convnet."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    if name.startswith("convnet.export"):
        pytest.importorskip("onnx")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
