"""What no source of ours does, for it would run what somebody else wrote, or show what nobody may see."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import PACKAGES, PROCESSES, ROOT, imports, sources

SHIPPED = sorted(PACKAGES | {"bench", "deploy"})

# All that unpickles, or does so by default.
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg"}
UNPICKLING_CALLS = {"torch.load", "torch.hub.load", "pandas.read_pickle"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, by its name as it is written: `torch.load`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("folder", SHIPPED)
def test_nothing_is_unpickled(folder):
    for path in sources(folder):
        assert not PICKLES & set(imports(path)), path
        assert not {name for name, _ in calls(path)} & UNPICKLING_CALLS, path
        allowed = [kw.value for _, call in calls(path) for kw in call.keywords if kw.arg == "allow_pickle"]
        assert all(ast.unparse(value) == "False" for value in allowed), path


@pytest.mark.parametrize("folder", SHIPPED)
def test_no_text_is_run_as_code_or_by_a_shell(folder):
    for path in sources(folder):
        for name, call in calls(path):
            assert name not in RUNS_TEXT | {"os.system", "os.popen"}, path
            assert not any(keyword.arg == "shell" for keyword in call.keywords), path
            if name == "yaml.load":
                (loader,) = [keyword.value for keyword in call.keywords if keyword.arg == "Loader"]
                assert ast.unparse(loader) == "yaml.BaseLoader", path


@pytest.mark.parametrize("folder", sorted({*SHIPPED, "tests"}))
def test_code_that_comes_with_a_model_is_trusted_nowhere(folder):
    """Said in so many words where strangers' models are loaded: silence makes transformers ask a terminal."""
    for path in sources(folder):
        for name, call in calls(path):
            trusted = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
            assert [ast.unparse(value) for value in trusted if ast.unparse(value) != "False"] == [], path
            if name.startswith("Auto") and name.endswith(".from_pretrained") and folder in PROCESSES:
                assert trusted, f"{path}: {name}"


@pytest.mark.parametrize("folder", sorted(PROCESSES))
def test_only_the_process_for_it_makes_templates(folder):
    rendering = {
        str(path.relative_to(ROOT))
        for path in sources(folder)
        if "jinja2" in imports(path)
        or any(name.endswith(("render_jinja_template", "apply_chat_template")) for name, _ in calls(path))
    }
    assert rendering == ({"gateway/template_process.py"} if folder == "gateway" else set())
