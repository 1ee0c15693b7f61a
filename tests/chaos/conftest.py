"""One cluster for all faults: starting three workers takes longer than most of them."""

import pytest
import pytest_asyncio

from batchyard.demo import MODEL_DIR
from bench.chaos.cluster import Cluster, Layout
from bench.chaos.questions import questions
from bench.chaos.rehearsal import Script, rehearse
from bench.chaos.wire import allowed
from bench.prompts import Text

STREAMS = 6


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(tmp_path_factory):
    layout = Layout(tight=True, far=allowed())
    async with Cluster(tmp_path_factory.mktemp("cluster"), layout, STREAMS) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def script(cluster) -> Script:
    return await rehearse(cluster.rpc, questions(Text(MODEL_DIR).prompts(9), "demo"), STREAMS)


@pytest.fixture(autouse=True)
def words_of_the_processes(cluster, capsys):
    """What they printed last, where a test fails."""
    yield
    print(cluster.log()[-3000:])
