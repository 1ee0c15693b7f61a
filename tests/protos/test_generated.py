import os
import sys
from pathlib import Path

import pytest

from protos.generate import ROOT, generate


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What protoc writes now for the .proto files as they are, by name."""
    out = tmp_path_factory.mktemp("generated")
    with pytest.MonkeyPatch.context() as patch:
        # protoc finds the mypy plugins on the PATH; a virtual environment need not be activated.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        generate(out)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_committed_code_is_what_protoc_writes(generated):
    committed = {
        str(path.relative_to(ROOT)): path.read_bytes() for path in (ROOT / "protos").glob("*_pb2*.py*")
    }
    assert sorted(generated) == sorted(committed)
    stale = [name for name, code in generated.items() if committed[name] != code]
    assert stale == [], "run `make protos`"
