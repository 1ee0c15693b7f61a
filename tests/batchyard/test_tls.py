"""Certificates good and bad, and what is done when they are renewed."""

import dataclasses
from pathlib import Path

import pytest

from batchyard.config import GatewaySettings, SchedulerSettings
from batchyard.errors import ConfigError
from batchyard.settings import load
from batchyard.tls import Renewing, TlsFiles, api_tls, internal_tls
from tests.certificates import YESTERDAY, Authority, api, internal


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_without_files_there_is_no_tls():
    assert api_tls(GatewaySettings()) is None
    assert internal_tls(GatewaySettings()) is None


def test_files_come_from_the_settings(ca, tmp_path):
    files = ca.issue("us", "batchyard.internal")
    assert api_tls(GatewaySettings(**api(files))) == dataclasses.replace(files, ca_certs=None)
    assert api_tls(GatewaySettings(**api(files, clients=True))) == files
    settings = SchedulerSettings(**internal(files), internal_ssl_name="batchyard.internal")
    assert internal_tls(settings) == dataclasses.replace(
        files, peer_name="batchyard.internal", settings="internal_ssl"
    )


def test_a_certificate_of_a_public_authority_needs_no_authorities_given(ca):
    files = ca.issue("public", "example.org")
    assert api_tls(GatewaySettings(**api(files)))


def test_a_certificate_knows_its_names(ca):
    assert set(ca.issue("us", "127.0.0.1", "gateway").names()) == {"127.0.0.1", "gateway"}


@pytest.mark.parametrize(
    ("cls", "flags", "says"),
    [
        (GatewaySettings, ["--ssl-certfile", "x"], "ssl_certfile and ssl_keyfile go together"),
        (GatewaySettings, ["--ssl-keyfile", "x"], "ssl_certfile and ssl_keyfile go together"),
        (GatewaySettings, ["--ssl-ca-certs", "x"], "ssl_ca_certs needs ssl_certfile"),
        (SchedulerSettings, ["--internal-ssl-certfile", "x"], "internal_ssl_ca_certs go together"),
        (SchedulerSettings, ["--internal-ssl-name", "x"], "internal_ssl_ca_certs go together"),
    ],
)
def test_half_of_it_is_refused(cls, flags, says):
    with pytest.raises(ConfigError, match=says):
        load(cls, flags, {})


def _missing(files: TlsFiles, ca: Authority) -> TlsFiles:
    files.keyfile.unlink()
    return files


def _folder(files: TlsFiles, ca: Authority) -> TlsFiles:
    return dataclasses.replace(files, certfile=files.certfile.parent)


def _swapped(files: TlsFiles, ca: Authority) -> TlsFiles:
    return dataclasses.replace(files, certfile=files.keyfile, keyfile=files.certfile)


def _no_key(files: TlsFiles, ca: Authority) -> TlsFiles:
    return dataclasses.replace(files, keyfile=files.certfile)


def _other_key(files: TlsFiles, ca: Authority) -> TlsFiles:
    return dataclasses.replace(files, keyfile=ca.issue("other").keyfile)


def _damaged_certificate(files: TlsFiles, ca: Authority) -> TlsFiles:
    text = files.certfile.read_text()
    files.certfile.write_text(text.replace(text[100:200], ""))
    return files


def _damaged_key(files: TlsFiles, ca: Authority) -> TlsFiles:
    text = files.keyfile.read_text()
    files.keyfile.write_text(text.replace(text[60:90], ""))
    return files


def _encrypted_key(files: TlsFiles, ca: Authority) -> TlsFiles:
    text = files.keyfile.read_text()
    files.keyfile.write_text(text.replace("PRIVATE", "ENCRYPTED PRIVATE"))
    return files


def _no_authorities(files: TlsFiles, ca: Authority) -> TlsFiles:
    return dataclasses.replace(files, ca_certs=files.keyfile)


def _other_authorities(files: TlsFiles, ca: Authority) -> TlsFiles:
    return dataclasses.replace(files, ca_certs=Authority(ca.file.parent, "stranger").file)


def _expired(files: TlsFiles, ca: Authority) -> TlsFiles:
    return ca.issue("us", ends=YESTERDAY)


@pytest.mark.parametrize(
    ("spoil", "setting", "says"),
    [
        (_missing, "keyfile", r"cannot read \S+us\.key: No such file or directory"),
        (_folder, "certfile", r"cannot read \S+: Is a directory"),
        (_swapped, "keyfile", r"us\.pem holds no private key in PEM form"),
        (_no_key, "keyfile", r"us\.pem holds no private key in PEM form"),
        (_other_key, "keyfile", r"other\.key is not the key of \S+us\.pem"),
        (_damaged_certificate, "certfile", r"us\.pem is damaged"),
        (_damaged_key, "keyfile", r"us\.key cannot be used with \S+us\.pem: \w+"),
        (_encrypted_key, "keyfile", r"us\.key is encrypted; a server needs one without passphrase"),
        (_no_authorities, "ca_certs", r"us\.key holds no certificate in PEM form"),
        (_other_authorities, "certfile", r"us\.pem does not come from the authorities given"),
        (_expired, "certfile", r"us\.pem cannot be used: certificate has expired"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting_and_the_file(ca, spoil, setting, says):
    files = spoil(ca.issue(), ca)
    with pytest.raises(ConfigError, match=rf"^internal_ssl_{setting}: \S*{says}") as caught:
        internal_tls(SchedulerSettings(**internal(files)))
    assert "\n" not in str(caught.value)
    if setting != "ca_certs" and spoil is not _other_authorities:
        with pytest.raises(ConfigError, match=rf"^ssl_{setting}: \S*{says}"):
            api_tls(GatewaySettings(**api(files)))


def test_a_name_that_is_not_in_the_certificate_is_a_mistake(ca):
    settings = SchedulerSettings(**internal(ca.issue()), internal_ssl_name="batchyard.internal")
    with pytest.raises(ConfigError, match=r"us\.pem cannot be used: Hostname mismatch"):
        internal_tls(settings)


class TestRenewing:
    def made(self, files: TlsFiles) -> Renewing[bytes]:
        return Renewing(files, lambda files: files.read().chain)

    def test_a_renewed_certificate_is_taken(self, ca):
        files = ca.issue()
        renewing = self.made(files)
        before = renewing.current()
        assert renewing.current() is before
        ca.issue()
        assert renewing.current() == files.certfile.read_bytes() != before

    @pytest.mark.parametrize("spoil", [_missing, _damaged_certificate, _damaged_key])
    def test_the_one_before_stays_where_the_new_one_is_no_good(self, ca, spoil):
        files = ca.issue()
        renewing = self.made(files)
        before = renewing.current()
        spoil(files, ca)
        assert renewing.current() is before
        ca.issue()
        assert renewing.current() == files.certfile.read_bytes()
