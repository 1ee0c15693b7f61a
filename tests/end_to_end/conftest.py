import pytest

from tests.end_to_end.stack import Stack


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The demo model behind REST and gRPC, for the whole session."""
    with Stack(tmp_path_factory.mktemp("server")) as stack:
        yield stack
