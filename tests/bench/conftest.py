"""A tiny model, and batches for kernels, as the worker's tests have them."""

from collections.abc import Iterator

import pytest
import structlog

from tests.gpu_worker.conftest import tiny_llama
from tests.gpu_worker.kernels.conftest import make_batch

__all__ = ["make_batch", "tiny_llama"]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Benchmarks silence the log of their process, which here is that of other tests too."""
    config = structlog.get_config()
    yield
    structlog.configure(**config)
