"""The clients in docs/examples, as a reader would run them."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_grpc_client(server):
    shown = run("grpc_client.py", "--address", server.grpc_address)
    assert shown.startswith("model: demo, 2048 tokens")
    assert "os.path.join(" in shown
    assert "[ended: stop]" in shown
    assert shown.count("[ended: length]") == shown.count("tokens read, 24 written]") == 2
    assert "choices: ['" in shown
    assert "cancelled after " in shown
    assert "error: NOT_FOUND: The model 'another' does not exist" in shown
    assert "error: INVALID_ARGUMENT: Invalid value for 'temperature'" in shown
    await server.idle()


def test_openai_client(server):
    shown = run("openai_client.py", "--base-url", f"{server.base_url}/v1")
    assert shown.startswith("model: demo\nchat: ")
    assert "os.path.join(" in shown
    assert "completion: def read_lines(path):" in shown
    assert "[ended: stop]" in shown
    assert "written]" in shown.partition("stream: ")[2]
    assert "error: model_not_found: Error code: 404" in shown
    assert "error: temperature: Error code: 400" in shown
