from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from tests.end_to_end.stack import Stack


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The demo model behind REST and gRPC, for the whole session."""
    with Stack(tmp_path_factory.mktemp("server")) as stack:
        yield stack


class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps (service, span) of all that is exported."""

    def __init__(self):
        self.spans = []

    def Export(self, request, context):
        for resource in request.resource_spans:
            (service,) = (
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def collector():
    """What it has collected, and its endpoint."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(0).wait()
