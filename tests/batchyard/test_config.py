import pytest
from pydantic import ValidationError

from batchyard.config import GatewaySettings, SchedulerSettings, ServeSettings, WorkerSettings

ALL = [WorkerSettings, SchedulerSettings, GatewaySettings, ServeSettings]


def test_serve_has_every_setting_with_the_same_default():
    for cls in ALL:
        for name, field in cls.model_fields.items():
            assert ServeSettings.model_fields[name].default == field.default


@pytest.mark.parametrize("cls", ALL)
def test_every_setting_has_a_default_and_a_description_of_one_line(cls):
    for field in cls.model_fields.values():
        assert not field.is_required()
        assert field.description
        assert "\n" not in field.description


def test_the_addresses_match_by_default():
    assert SchedulerSettings().worker_addresses == (WorkerSettings().listen,)
    assert GatewaySettings().scheduler_address == (SchedulerSettings().scheduler_listen,)


def test_settings_are_frozen():
    settings = ServeSettings()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_unknown_names_are_refused():
    with pytest.raises(ValidationError):
        WorkerSettings(port=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "bad",
    [
        {"port": -1},
        {"max_num_seqs": 0},
        {"block_size": 12},
        {"gpu_memory_utilization": 0.0},
        {"steps_in_flight": 17},
        {"trace_sample": 1.5},
        {"max_num_batched_tokens": 8, "max_num_seqs": 9},
    ],
)
def test_bad_values_are_refused(bad):
    with pytest.raises(ValidationError):
        ServeSettings(**bad)
