import asyncio
import os
import sys
from collections.abc import Iterator

import pytest

from batchyard.plan import ProcessSpec
from batchyard.process import Process, lifeline


class Runs:
    """Makes processes that run a line of Python, and keeps what they write."""

    def __init__(self, lifeline: int) -> None:
        self.lines: list[str] = []
        self._lifeline = lifeline

    def __call__(self, code: str) -> Process:
        spec = ProcessSpec("worker-0", "worker", (sys.executable, "-S", "-c", code), os.environ)
        return Process(spec, self._lifeline, lambda _, line: self.lines.append(line))

    async def written(self, line: str) -> None:
        async with asyncio.timeout(10):
            while line not in self.lines:
                await asyncio.sleep(0.01)


@pytest.fixture
def runs() -> Iterator[Runs]:
    with lifeline() as line:
        yield Runs(line)


async def test_exit_code_and_lines(runs):
    code = "import os, sys; os.write(1, b'a\\r\\n\\nb\\n'); os.write(2, b'c'); sys.exit(3)"
    assert await runs(code).run() == 3
    assert runs.lines == ["a", "", "b", "c"]


async def test_lines_of_any_length_and_bytes(runs):
    code = "import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\n\\xff\\n')"
    assert await runs(code).run() == 0
    assert [len(line) for line in runs.lines] == [300_000, 1]


async def test_users_error_is_kept_for_the_last(runs):
    process = runs("print('batchyard: no'); print('more')")
    await process.run()
    assert (process.user_error, runs.lines) == ("no", ["more"])


async def test_runs_again(runs):
    process = runs("print('once')")
    assert [await process.run(), await process.run()] == [0, 0]
    assert runs.lines == ["once", "once"]


async def test_end(runs):
    process = runs("import signal; print('ready', flush=True); signal.pause()")
    task = asyncio.create_task(process.run())
    await runs.written("ready")
    process.end()
    assert await task == -15
    process.end()  # and once more, when it is gone
    process.kill()


async def test_end_before_it_has_started(runs):
    process = runs("import signal; signal.pause()")
    task = asyncio.create_task(process.run())
    process.end()
    assert await task == -15


async def test_kill_takes_what_it_started(runs):
    code = "import subprocess; subprocess.Popen(['sleep', '60']); print('ready', flush=True); input()"
    process = runs(code)
    task = asyncio.create_task(process.run())
    await runs.written("ready")
    process.kill()
    # Its child holds the other end of our pipe: `run` returns only when that is gone too.
    assert await asyncio.wait_for(task, 10) == -9


async def test_is_in_a_session_of_its_own_and_holds_the_lifeline(runs):
    code = "import os, stat; print(os.getsid(0) == os.getpid(), stat.S_ISFIFO(os.fstat(0).st_mode))"
    await runs(code).run()
    assert runs.lines == ["True True"]
