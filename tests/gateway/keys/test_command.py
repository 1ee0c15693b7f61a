"""`batchyard keys`, as an operator types it."""

import asyncio

import pytest

from batchyard import cli
from gateway.keys.records import digest_of
from gateway.keys.stores import FileKeys


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv("BATCHYARD_API_KEYS", raising=False)
    return tmp_path / "keys.json"


@pytest.fixture
def keys(capsys):
    """Runs it: exit code, standard output, standard error."""

    def run(*argv):
        with pytest.raises(SystemExit) as ended:
            cli.main(["keys", *argv])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def records(path):
    return asyncio.run(FileKeys(path).poll())


def test_from_giving_to_taking(keys, path):
    limits = ["--tokens-per-minute", "2000", "--min-priority", "-5", "--cache-salt", "s"]
    code, key, told = keys("add", "alice", "--api-keys", str(path), *limits)
    assert code == 0
    assert "alice" in told
    (record,) = records(path)
    assert record.sha256 == digest_of(key.strip().encode())
    assert (record.tokens_per_minute, record.min_priority, record.cache_salt) == (2000, -5, "s")
    code, listed, _ = keys("list", "--api-keys", str(path))
    assert "alice" in listed
    assert "tokens_per_minute=2000" in listed
    assert record.sha256 not in listed
    assert keys("revoke", "alice", "--api-keys", str(path))[0] == 0
    assert records(path) == ()


def test_an_operator_is_one_by_name(keys, path):
    assert keys("add", "ops", "--api-keys", str(path), "--operator")[0] == 0
    assert keys("add", "alice", "--api-keys", str(path))[0] == 0
    assert {record.name: record.operator for record in records(path)} == {"ops": True, "alice": False}
    assert "operator=True" in keys("list", "--api-keys", str(path))[1]


def test_the_gateways_own_setting_says_where(keys, path, monkeypatch):
    monkeypatch.setenv("BATCHYARD_API_KEYS", str(path))
    assert keys("add", "alice")[0] == 0
    assert keys("list")[1].startswith("alice")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "required"),
        (["take"], "invalid choice"),
        (["list"], "--api-keys FILE"),
        (["list", "--api-keys", "/none/keys.json"], "cannot read /none/keys.json"),
        (["list", "--api-keys", "redis://127.0.0.1:1/0"], "Redis does not answer"),
        (["add", "alice", "--api-keys", "k", "--weight", "0"], "weight"),
        (["add", "a b", "--api-keys", "k"], "name"),
        (["revoke", "alice", "--api-keys", "/none/keys.json"], "no folder"),
    ],
)
def test_a_mistake_is_one_line(keys, path, argv, said):
    code, out, told = keys(*argv)
    assert code == 2
    assert out == ""
    (line,) = told.splitlines()
    assert line.startswith("batchyard: ")
    assert said in line
