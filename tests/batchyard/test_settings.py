from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.config import (
    GatewaySettings,
    ModelSettings,
    SchedulerSettings,
    ServeSettings,
    Settings,
    WorkerSettings,
)
from batchyard.errors import ConfigError
from batchyard.flags import kind_of
from batchyard.settings import load, to_env, variable_of

INTERNAL_TLS = {"internal_ssl_certfile", "internal_ssl_keyfile", "internal_ssl_ca_certs"}
API_TLS = {"ssl_certfile", "ssl_keyfile"}
ALL = [WorkerSettings, SchedulerSettings, GatewaySettings, ServeSettings]


def write(folder: Path, text: str) -> str:
    path = folder / "batchyard.yaml"
    path.write_text(text)
    return str(path)


def complaint(cls: type[Settings], argv: list[str], env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cls, argv, env or {})
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestSources:
    def test_defaults(self):
        for cls in ALL:
            assert load(cls, [], {}) == cls()

    def test_command_line_beats_environment_beats_file(self, tmp_path):
        file = write(tmp_path, "port: 1\ngrpc-port: 2\nhost: file")
        env = {"BATCHYARD_PORT": "11", "BATCHYARD_GRPC_PORT": "12"}
        settings = load(GatewaySettings, ["--port", "21", "--config", file], env)
        assert (settings.port, settings.grpc_port, settings.host) == (21, 12, "file")

    def test_file_named_by_environment(self, tmp_path):
        env = {"BATCHYARD_CONFIG": write(tmp_path, "max-model-len: 77")}
        assert load(WorkerSettings, [], env).max_model_len == 77

    def test_command_line_names_another_file(self, tmp_path):
        env = {"BATCHYARD_CONFIG": "/does/not/exist"}
        assert load(WorkerSettings, ["--config", write(tmp_path, "seed: 3")], env).seed == 3

    @pytest.mark.parametrize("key", ["max_num_seqs", "max-num-seqs", "max-num_seqs"])
    def test_file_keys_have_either_dash(self, tmp_path, key):
        assert load(WorkerSettings, ["--config", write(tmp_path, f"{key}: 9")], {}).max_num_seqs == 9

    def test_one_file_and_environment_serve_all_commands(self, tmp_path):
        file = write(tmp_path, "port: 1\nsteps-in-flight: 3\nseed: 4\nworkers: 2")
        env = {"BATCHYARD_API_KEY": "k", "BATCHYARD_BLOCK_SIZE": "32", "PATH": "/bin"}
        assert load(GatewaySettings, ["--config", file], env).port == 1
        assert load(SchedulerSettings, ["--config", file], env).steps_in_flight == 3
        assert load(WorkerSettings, ["--config", file], env).block_size == 32

    def test_empty_variable_and_null_are_not_set(self, tmp_path):
        file = write(tmp_path, "otlp: null\nredis: ~\nhost:\n")
        env = {"BATCHYARD_PORT": "", "BATCHYARD_CONFIG": ""}
        assert load(ServeSettings, ["--config", file], env) == ServeSettings()

    def test_empty_file(self, tmp_path):
        assert load(WorkerSettings, ["--config", write(tmp_path, "# nothing\n")], {}) == WorkerSettings()

    def test_the_file_holds_text_as_it_was_written(self, tmp_path):
        file = write(tmp_path, "api-key: 0123\nserved-model-name: on")
        settings = load(GatewaySettings, ["--config", file], {})
        assert (settings.api_key, settings.served_model_name) == ("0123", "on")


class TestValues:
    def test_booleans(self):
        def caching(*argv: str, **env: str) -> bool:
            return load(SchedulerSettings, argv, env).enable_prefix_caching

        assert caching("--enable-prefix-caching")
        assert not caching("--no-enable-prefix-caching")
        assert not caching(BATCHYARD_ENABLE_PREFIX_CACHING="false")
        assert caching("--enable-prefix-caching", BATCHYARD_ENABLE_PREFIX_CACHING="no")

    def test_lists(self, tmp_path):
        expected = ("a:1", "unix:/b")
        file = write(tmp_path, "worker-addresses: [a:1, 'unix:/b']")
        assert (
            load(SchedulerSettings, ["--worker-addresses", "a:1, unix:/b"], {}).worker_addresses == expected
        )
        assert load(SchedulerSettings, ["--config", file], {}).worker_addresses == expected

    def test_choices_that_are_numbers(self):
        assert load(WorkerSettings, ["--block-size", "32"], {}).block_size == 32

    def test_equals_sign(self):
        assert load(GatewaySettings, ["--api-key=-abc"], {}).api_key == "-abc"


class TestErrors:
    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--prot", "1"], ["--prot", "`batchyard gateway`", "did you mean --port?"]),
            (["--api_key", "x"], ["--api_key", "did you mean --api-key?"]),
            (["--por=1"], ["--por", "--port"]),  # no abbreviations
            (["--workers", "2"], ["--workers", "not a setting of `batchyard gateway`"]),
            (["--port"], ["--port", "expected one argument"]),
            (["--port", "http"], ["--port", "integer", "'http'"]),
            (["--port", "65536"], ["--port", "65535", "'65536'"]),
            (["--trace-sample", "nan"], ["--trace-sample", "'nan'"]),
            (["--log-level", "loud"], ["--log-level", "'debug', 'info', 'warning' or 'error'", "'loud'"]),
            (["--host", ""], ["--host", "empty"]),
            (["--trace-url", "javascript:{trace_id}"], ["--trace-url", "http://", "'javascript:"]),
            (["--trace-url", "http://jaeger/"], ["--trace-url", "{trace_id}"]),
            (["demo"], ["'demo'", "--name value"]),
        ],
    )
    def test_command_line(self, argv, words):
        message = complaint(GatewaySettings, argv)
        assert [word for word in words if word not in message] == []

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            ("BATCHYARD_PROT", "1", ["BATCHYARD_PROT", "did you mean BATCHYARD_PORT?"]),
            ("BATCHYARD_port", "1", ["BATCHYARD_port", "BATCHYARD_PORT"]),
            ("BATCHYARD_", "1", ["BATCHYARD_: unknown"]),
            ("BATCHYARD_PORT", "tcp://10.0.0.1:80", ["BATCHYARD_PORT", "environment", "tcp:"]),
            ("BATCHYARD_CONFIG", "/none.yaml", ["BATCHYARD_CONFIG", "/none.yaml", "No such file"]),
        ],
    )
    def test_environment(self, variable, value, words):
        message = complaint(GatewaySettings, [], {variable: value})
        assert [word for word in words if word not in message] == []

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("prot: 1", ["prot in ", "batchyard.yaml", "did you mean port?"]),
            ("max-modellen: 1", ["max-modellen", "did you mean max_model_len?"]),
            ("port: many", ["port in ", "integer", "'many'"]),
            ("port: true", ["port in ", "'true'"]),
            ("port: [1]", ["port in ", "one value"]),
            ("port: {a: 1}", ["port in ", "one value"]),
            ("worker-addresses: [[a]]", ["worker-addresses in ", "one value"]),
            ("worker-addresses: 'a,,b'", ["worker-addresses", "empty"]),
            ("grpc-port: 1\ngrpc_port: 2", ["grpc_port in ", "twice"]),
            ("port: 1\nhost: [", ["batchyard.yaml", "not YAML", "line 2"]),
            ("- port", ["batchyard.yaml", "`port: 8000`"]),
            ("a\x01b", ["batchyard.yaml", "control characters"]),
        ],
    )
    def test_file(self, tmp_path, text, words):
        message = complaint(ServeSettings, ["--config", write(tmp_path, text)])
        assert [word for word in words if word not in message] == []

    def test_file_that_is_not_text(self, tmp_path):
        path = tmp_path / "x.yaml"
        path.write_bytes(b"\xff\xfe\xff")
        assert "not UTF-8" in complaint(WorkerSettings, ["--config", str(path)])

    def test_rule_about_several_settings_names_them(self):
        message = complaint(WorkerSettings, ["--max-num-seqs", "9000"])
        assert "max_num_batched_tokens (8192)" in message
        assert "max_num_seqs (9000)" in message

    def test_secrets_are_not_repeated(self, tmp_path):
        assert "hush" not in complaint(GatewaySettings, ["--apikey=hush"])
        file = write(tmp_path, "api-key: hush\nport: [")
        assert "hush" not in complaint(GatewaySettings, ["--config", file])

    def test_serve_refuses_what_it_sets_itself(self):
        assert "--listen" in complaint(ServeSettings, ["--listen", "x"])


@pytest.mark.parametrize("cls", ALL)
def test_help_has_one_line_for_each_setting(cls, capsys):
    with pytest.raises(SystemExit) as ended:
        load(cls, ["--help"], {})
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    wired = {"listen", "worker_id", "worker_addresses", "scheduler_listen", "scheduler_address"}
    wired |= {"share_port", "gateway_count", "gateway_folder", *INTERNAL_TLS, "internal_ssl_name"}
    wired |= {"advertise_address", "weight"}
    for name, field in cls.model_fields.items():
        if cls is ServeSettings and name in wired:
            continue
        (line,) = [line for line in lines if line.startswith(f"  --{name.replace('_', '-')} ")]
        assert field.description in line
        if field.default is not None and kind_of(field) not in (bool, tuple):
            assert f"(default: {field.default})" in line


def values(cls: type[Settings]) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments that make settings of `cls`."""
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
    item = st.text(st.characters(codec="utf-8", exclude_characters="\0,"), min_size=1).map(str.strip)
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(1, 16),
        float: st.floats(0.01, 1),
        bool: st.booleans(),
        str: text,
        tuple: st.lists(item.filter(bool), min_size=1).map(tuple),
    }

    def of(kind: Any) -> st.SearchStrategy[Any]:
        return kinds[kind] if kind in kinds else st.sampled_from(get_args(kind))

    chosen = {name: of(kind_of(field)) for name, field in cls.model_fields.items()}
    if "max_num_batched_tokens" in chosen:
        chosen["max_num_batched_tokens"] = st.integers(256, 65536)  # it has to cover max_num_seqs
    required = {}
    if "trace_url" in chosen:
        chosen["trace_url"] = st.sampled_from(["http://jaeger:16686/trace/{trace_id}"])
    if "redis" in chosen:
        chosen["redis"] = st.sampled_from(
            ["redis://host", "rediss://user:p%2Fw@host:1/2", "unix:///sock?db=1"]
        )
        if "schedulers" in chosen:  # standbys need it
            required["redis"] = chosen.pop("redis")
    return st.fixed_dictionaries(required, optional=chosen).map(whole)


def whole(chosen: dict[str, Any]) -> dict[str, Any]:
    """`chosen` without files that go together and are not all there."""
    for prefix, files in (("internal_ssl_", INTERNAL_TLS), ("ssl_", API_TLS)):
        if not files <= chosen.keys():
            chosen = {name: value for name, value in chosen.items() if not name.startswith(prefix)}
    return chosen


@pytest.mark.parametrize("cls", [*ALL, ModelSettings])
def test_environment_reproduces_settings(cls):
    @given(values(cls))
    def check(chosen: dict[str, Any]) -> None:
        settings = cls(**chosen)
        env = to_env(settings)
        assert load(cls, [], env) == settings
        changed = {name for name, value in settings if value != cls.model_fields[name].default}
        assert set(env) == {variable_of(name) for name in changed}

    check()
