"""Regenerates the Python code of every .proto beside this file: `python -m protos.generate`."""

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Writes `protos/*_pb2.py`, `*_pb2_grpc.py` and their type stubs below `out`.

    Raises RuntimeError when protoc refuses a file; its own message is on standard error.
    """
    files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "protos").glob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if code := protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, *files]):
        raise RuntimeError(f"protoc ended with code {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
