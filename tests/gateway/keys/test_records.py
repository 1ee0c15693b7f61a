"""What is kept of a key."""

from datetime import UTC, datetime

import pytest

from batchyard.errors import ConfigError
from gateway.keys.records import ANYBODY, Tenant, digest_of, dump_records, new_key, parse_records, record_for

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_keys_are_long_and_differ():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("by-") and len(key) == 46 for key in keys)


def test_a_record_has_the_digest_and_not_the_key():
    key = new_key()
    record = record_for(key, NOW, "alice", tokens_per_minute="2000", weight="2")
    assert (record.tokens_per_minute, record.weight) == (2000, 2.0)
    text = dump_records((record,))
    assert key.encode() not in text
    assert digest_of(key.encode()).encode() in text
    assert parse_records(text, "") == (record,)


@pytest.mark.parametrize(
    ("name", "promises", "said"),
    [
        ("", {}, "name"),
        ("a b", {}, "name"),
        ("a\n", {}, "name"),
        ("-a", {}, "name"),
        ("x" * 65, {}, "name"),
        ("a", {"weight": 0}, "weight"),
        ("a", {"weight": "inf"}, "weight"),
        ("a", {"max_timeout": "nan"}, "max_timeout"),
        ("a", {"requests_per_minute": 0}, "requests_per_minute"),
        ("a", {"tokens": 1}, "tokens"),
        ("a", {"min_priority": 2, "max_priority": 1}, r"min_priority \(2\)"),
    ],
)
def test_what_cannot_be_promised(name, promises, said):
    with pytest.raises(ConfigError, match=said):
        record_for("k", NOW, name, **promises)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "keys.json: Invalid JSON"),
        (b"[]", "keys.json"),
        (b'{"keys": [{"name": "a"}]}', "keys.json: keys.0.sha256"),
        (b'{"kesy": []}', "keys.json: kesy"),
    ],
)
def test_a_malformed_document(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_records(text, "keys.json")


def test_two_keys_of_one_name_or_digest():
    one, other = record_for("k", NOW, "a"), record_for("k", NOW, "b")
    with pytest.raises(ConfigError, match="two keys have the sha256"):
        parse_records(_joined(one, other), "")
    with pytest.raises(ConfigError, match="two keys have the name a"):
        parse_records(_joined(one, record_for("l", NOW, "a")), "")


def _joined(*records):
    return f'{{"keys": [{",".join(record.model_dump_json() for record in records)}]}}'.encode()


@pytest.mark.parametrize(("least", "most", "default"), [(-5, 5, 0), (3, 9, 3), (-9, -3, -3), (0, 0, 0)])
def test_the_default_priority_is_the_nearest_to_zero(least, most, default):
    assert Tenant(min_priority=least, max_priority=most).default_priority == default


def test_a_key_has_to_be_promised_urgency():
    assert record_for("k", NOW, "a").min_priority == 0
    assert ANYBODY.min_priority < 0
