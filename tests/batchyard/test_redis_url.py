import pytest

from batchyard.config import GatewaySettings, SchedulerSettings
from batchyard.errors import ConfigError
from batchyard.redis_url import check_redis_url
from batchyard.settings import load
from gateway.keys.stores import open_store


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:hush@host:6379/3",
        "rediss://:p%2Fw@[::1]:6380/0?ssl_cert_reqs=required",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_urls(url):
    assert check_redis_url(url) == url


BAD = [
    "hush",
    "hush:6379",
    "redis:hush",
    "redis://",
    "redsi://:hush@host",
    "redis://host:hush",
    "redis://:hu/sh@host:6379",  # its password ends the host, for a client, and the rest is its port
    "redis://[hush",
    "rediss://:hush@host?ssl_ca_certs=/no/ca.pem",
]


@pytest.mark.parametrize("url", BAD)
@pytest.mark.parametrize("cls", [GatewaySettings, SchedulerSettings])
@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_a_bad_one_is_a_mistake_that_does_not_show_it(url, cls, source, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"redis: '{url}'")
    argv = {"flag": ["--redis", url], "file": ["--config", str(file)]}.get(source, [])
    with pytest.raises(ConfigError) as caught:
        load(cls, argv, {"BATCHYARD_REDIS": url} if source == "environment" else {})
    shows_nothing(caught.value)


def test_nor_does_a_bad_store_of_keys():
    for url in BAD:
        if "://" in url:
            with pytest.raises(ConfigError, match=r"^api_keys: ") as caught:
                open_store(url)
            shows_nothing(caught.value)


def shows_nothing(error: BaseException) -> None:
    assert "hu" not in str(error)
    assert "\n" not in str(error)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"^ssl_ca_certs: there is no file /no/ca.pem that may be read$"):
        check_redis_url("rediss://host?ssl_ca_certs=/no/ca.pem")
