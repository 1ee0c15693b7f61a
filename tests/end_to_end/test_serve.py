"""`batchyard serve`, from its first line to Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.end_to_end.stack import free_port


@pytest.fixture
def serve():
    port = free_port()
    arguments = [
        "--port",
        str(port),
        "--grpc-port",
        str(free_port()),
        "--api-key",
        "sesame",
        "--gateways",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "batchyard.cli", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    process.stdout.close()


def test_serve_tells_when_it_is_ready_and_ends_cleanly(serve):
    process, url = serve
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if "ready" in line and url in line:
            break
    else:
        pytest.fail("\n".join(lines))
    assert any("Loading weights" in line for line in lines)
    assert "curl" in lines[-1]
    assert "sesame" not in "\n".join(lines)
    body = json.dumps({"model": "demo", "prompt": "import", "max_tokens": 3}).encode()
    request = urllib.request.Request(
        f"{url}/v1/completions", body, {"Authorization": "Bearer sesame", "Content-Type": "application/json"}
    )
    for _ in range(4):  # over both gateways, perhaps
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] == 3
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    answered = re.findall(r'^batchyard_gateway_requests_total\{.*completions".*\} (\S+)', text, re.M)
    assert sum(map(float, answered)) == 4
    state = urllib.request.Request(f"{url}/console/state", headers={"Authorization": "Bearer sesame"})
    deadline = time.monotonic() + 20  # the other gateway may still be starting
    while True:
        with urllib.request.urlopen(state, timeout=30) as reply:
            told = json.load(reply)
        if (told["gateways"], len(told["requests"])) == ({"heard": 2, "of": 2}, 4):
            break
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=5)
