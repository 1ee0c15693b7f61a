"""The lines between the packages, and the size of files: see docs/architecture.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROCESSES = {"gateway", "scheduler", "gpu_worker"}
PACKAGES = PROCESSES | {"prefix_cache", "protos", "batchyard"}
SHARED = {"protos", "batchyard"}

MAY_IMPORT = {
    "gateway": SHARED,
    "scheduler": SHARED | {"prefix_cache"},
    "gpu_worker": SHARED,
    "prefix_cache": SHARED,
    "protos": set(),
    "batchyard": {"protos"},
}

LINES = 400


def sources(package: str) -> list[Path]:
    """The files of a package, without the code that protoc writes."""
    return sorted(path for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name)


def imports(path: Path) -> Iterator[str]:
    """The top-level name of each module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_what_they_may(package):
    allowed = MAY_IMPORT[package] | {package}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if name in PACKAGES - allowed
    }
    assert wrong == set()


def test_only_the_command_imports_by_name():
    """An import by name would cross the lines unseen: `batchyard.cli` does, to run a process."""
    by_name = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Name) and node.id in ("import_module", "__import__"))
        or (isinstance(node, ast.Attribute) and node.attr == "import_module")
    }
    assert by_name == {"batchyard/cli.py"}


@pytest.mark.parametrize("folder", sorted(PACKAGES | {"bench"}))
def test_files_read_in_one_sitting(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in sources(folder)}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > LINES} == {}
