"""A tiny model, as the worker's tests have it."""

from tests.gpu_worker.conftest import tiny_llama

__all__ = ["tiny_llama"]
