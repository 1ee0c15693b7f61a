"""Threads that do one thing after another."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog


def single_thread(name: str) -> ThreadPoolExecutor:
    """One thread, whose log lines carry what the caller's do."""
    bind = partial(structlog.contextvars.bind_contextvars, **structlog.contextvars.get_contextvars())
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=bind)
