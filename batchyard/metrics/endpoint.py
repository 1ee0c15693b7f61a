"""Registries, and /metrics on a port of its own, for processes that serve no HTTP otherwise."""

from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.registry import Collector

from batchyard.errors import AddressInUse

# A second series for each that counts, which nothing here reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


def new_registry() -> CollectorRegistry:
    """One that tells of the process too: CPU time, memory and open files, by the usual names."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    return registry


def serve_metrics(port: int, collectors: Sequence[Collector]) -> tuple[int, Callable[[], None]]:
    """Serves all of them on all addresses; 0 is any port. The port, and what ends it. Raises AddressInUse."""
    together = CollectorRegistry(auto_describe=True)
    for collector in collectors:
        together.register(collector)
    try:
        server, thread = start_http_server(port, registry=together)
    except OSError as error:
        raise AddressInUse(f"cannot serve metrics on port {port}: {error.strerror}") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, close
