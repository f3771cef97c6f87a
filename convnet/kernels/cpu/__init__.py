"""Kernels in C, compiled at their first use."""
