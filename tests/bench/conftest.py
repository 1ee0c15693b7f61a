"""A tiny model, and batches for kernels, as the worker's tests have them."""

from tests.gpu_worker.conftest import tiny_llama
from tests.gpu_worker.kernels.conftest import make_batch

__all__ = ["make_batch", "tiny_llama"]
