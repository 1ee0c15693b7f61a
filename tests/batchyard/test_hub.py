import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from batchyard.demo import MODEL_DIR
from batchyard.errors import ModelError
from batchyard.hub import resolve_model

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"words",
    "pytorch_model.bin": b"weights",
    "consolidated.safetensors": b"weights",
    "original/params.json": b"{}",
}


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_demo():
    assert resolve_model("demo") == MODEL_DIR


def test_folder(tmp_path, monkeypatch):
    assert resolve_model(str(tmp_path)) == tmp_path.resolve()
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name") == (tmp_path / "org" / "name").resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/org") == (tmp_path / "org").resolve()


@pytest.mark.parametrize("name", ["./none", "/none", "~/none", "../none", "a/b/c", "none/", "a b", "a/.b"])
def test_what_looks_like_a_path_must_be_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{name}: no such folder" in refusal(name)


def test_file(tmp_path):
    (tmp_path / "x.gguf").touch()
    assert "this is a file" in refusal(str(tmp_path / "x.gguf"))


class Hub(BaseHTTPRequestHandler):
    """The few answers of Hugging Face's API that a download needs."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            files = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in FILES.items()]
            self.answer(200, json.dumps(files).encode())
        elif path.startswith("/api/models/org/tiny/"):
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(200, json.dumps({"id": "org/tiny", "sha": "a" * 40, "siblings": siblings}).encode())
        elif path.startswith("/org/tiny/resolve/"):
            name = path.split("/", 5)[5]
            self.answer(200, FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": "a" * 40})
        elif path.startswith("/api/models/org/odd/"):
            self.answer(200, b'"what?"')
        elif path.startswith("/api/models/org/gated/"):
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/org/broken/"):
            self.answer(500, b"{}")
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def resolved(*names: str, **env: str) -> list[str]:
    """What `resolve_model` gives or says for each name, in a process of its own: `env` is read at import."""
    code = (
        "import sys\nfrom batchyard.hub import resolve_model\nfrom batchyard.errors import ModelError\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(resolve_model(name))\n"
        "    except ModelError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_download(hub, tmp_path):
    env = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    folder, gated, missing, broken, odd = resolved(
        "org/tiny", "org/gated", "none", "org/broken", "org/odd", **env
    )
    found = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert "accept its licence on " in gated
    assert "--model none: no such folder or model on Hugging Face" in missing
    assert "does not answer" in broken
    assert "--model org/odd: the download from Hugging Face failed" in odd

    # Now it is on this machine, and found without a network.
    again, other = resolved("org/tiny", "org/other", **env | {"HF_HUB_OFFLINE": "1"})
    assert again == folder
    assert "HF_HUB_OFFLINE is set" in other


def test_no_network(tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    (message,) = resolved("org/tiny", **env)
    assert "Hugging Face does not answer" in message
    assert "give a folder" in message
