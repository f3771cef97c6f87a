"""Kernels in Triton."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # the kernels run on the CPU, step by step in Python: for tests
