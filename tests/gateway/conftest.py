"""Logs of the gateway's tests: short ones."""

import pytest
import structlog


@pytest.fixture(autouse=True, scope="session")
def _plain_logs():
    # structlog's own default prints the local variables of a whole traceback, which takes seconds.
    processors = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(),
    ]
    structlog.configure(processors=processors)
    yield
    structlog.reset_defaults()
