"""Certificates: which files they are in, whether they are good, and what is made of them.

    --ssl-certfile, --ssl-keyfile                the REST and gRPC APIs speak TLS
    --ssl-ca-certs                               and take clients only with a certificate of these authorities
    --internal-ssl-{certfile,keyfile,ca-certs}   gateways, schedulers and workers speak mutual TLS

Files that are renewed in place serve the next connection. A process's own connections to others keep the
certificate it started with.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast

import structlog

from batchyard.errors import ConfigError

if TYPE_CHECKING:  # a probe runs every few seconds, and reads settings only where there are some
    from batchyard.config import GatewaySettings, Settings

log = structlog.get_logger()

T = TypeVar("T")

_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_END_KEY = b"PRIVATE KEY-----"


@dataclass(frozen=True, slots=True)
class Pem:
    """What is in the files."""

    key: bytes
    chain: bytes
    authorities: bytes | None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate with its key, both PEM. With `ca_certs` peers must have a certificate from there too."""

    certfile: Path
    keyfile: Path
    ca_certs: Path | None = None
    peer_name: str | None = None  # which peers' certificates must be for; None: for their address
    settings: Literal["ssl", "internal_ssl"] = "ssl"  # how the names of the settings begin, for errors

    def read(self) -> Pem:
        """The files' contents. Raises ConfigError where one cannot be read, or is of another kind."""
        chain, key = self._read("certfile", self.certfile), self._read("keyfile", self.keyfile)
        authorities = self._read("ca_certs", self.ca_certs) if self.ca_certs else None
        if _END_KEY not in key:
            raise self._error("keyfile", self.keyfile, "holds no private key in PEM form")
        if b"ENCRYPTED" in key:
            # Whoever could read the key could read its passphrase: it would have to lie beside it.
            raise self._error("keyfile", self.keyfile, "is encrypted; a server needs one without passphrase")
        for what, path, pem in (
            ("certfile", self.certfile, chain),
            ("ca_certs", self.ca_certs, authorities),
        ):
            if path and pem is not None:
                self._check_certificates(what, path, pem)
        return Pem(key, chain, authorities)

    def checked(self) -> "TlsFiles":
        """These files, which have been found good. Raises ConfigError, one line that says what is wrong."""
        pem = self.read()
        try:
            server = self.server_context()
        except ssl.SSLError as error:
            raise self._error("keyfile", self.keyfile, self._key_problem(error)) from error
        try:
            _handshake(server, self._client_context(pem), self.peer_name)
        except ssl.SSLCertVerificationError as error:
            raise self._error("certfile", self.certfile, _sentence(error.verify_message)) from error
        except ssl.SSLError as error:
            raise self._error("certfile", self.certfile, f"cannot be used: {error.reason}") from error
        return self

    def names(self) -> list[str]:
        """The names and addresses that the certificate is for. Raises as `checked` does."""
        pem = self.read()
        certificate = _handshake(self.server_context(), self._client_context(pem), None)
        return [name for _, name in certificate.get("subjectAltName", ())]

    def server_context(self) -> ssl.SSLContext:
        """For a server, as the files are now. Raises ssl.SSLError and OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certfile, self.keyfile)
        if self.ca_certs:
            context.load_verify_locations(self.ca_certs)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def loopback_context(self) -> ssl.SSLContext:
        """For a client that asks the server on this machine how it is, and tells it nothing."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(self.certfile, self.keyfile)
        return context

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Another value when a file has changed. Raises OSError."""
        files = [path.stat() for path in (self.certfile, self.keyfile, self.ca_certs) if path]
        return tuple((file.st_mtime_ns, file.st_ino, file.st_size) for file in files)

    def _client_context(self, pem: Pem) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.peer_name is not None
        context.load_cert_chain(self.certfile, self.keyfile)
        if pem.authorities is None:
            # Whoever signed it: what matters here is that it is valid now, and for a server.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=(pem.authorities or pem.chain).decode("ascii", "replace"))
        return context

    def _key_problem(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"is not the key of {self.certfile}"
        return f"cannot be used with {self.certfile}: {error.reason or 'damaged'}"

    def _read(self, what: str, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.settings}_{what}: cannot read {path}: {error.strerror}") from error

    def _check_certificates(self, what: str, path: Path, pem: bytes) -> None:
        if _BEGIN_CERTIFICATE not in pem:
            raise self._error(what, path, "holds no certificate in PEM form")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
                cadata=pem.decode("ascii", "replace")
            )
        except ssl.SSLError as error:
            raise self._error(what, path, "is damaged") from error

    def _error(self, what: str, path: Path, problem: str) -> ConfigError:
        return ConfigError(f"{self.settings}_{what}: {path} {problem}")


class Renewing(Generic[T]):
    """What is made of certificate files, made again when they have changed. Safe to use in any thread."""

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], T]) -> None:
        """Raises what `make` raises, and OSError."""
        self._files = files
        self._make = make
        self._lock = threading.Lock()
        self._stamp = files.stamp()
        self._made = make(files)

    def current(self) -> T:
        """As the files are; where they are no good now, as they were when they last were."""
        with self._lock, contextlib.suppress(OSError):  # a file that is just being replaced
            stamp = self._files.stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
        return self._made

    def _renew(self) -> None:
        try:
            self._made = self._make(self._files.checked())
        except ConfigError as error:
            # Said of a certificate whose key is yet to come, too: the next change is looked at again.
            log.warning("renewed certificate not taken, the one before stays", reason=str(error))
        else:
            log.info("renewed certificate taken", file=str(self._files.certfile))


def api_tls(settings: "GatewaySettings") -> TlsFiles | None:
    """What the APIs serve with; None: in the clear. Raises ConfigError for files that are no good."""
    if settings.ssl_certfile is None or settings.ssl_keyfile is None:
        return None
    authorities = settings.ssl_ca_certs
    return TlsFiles(
        _path(settings.ssl_certfile), _path(settings.ssl_keyfile), _path(authorities) if authorities else None
    ).checked()


def internal_tls(settings: "Settings") -> TlsFiles | None:
    """What our processes trust each other by; None: in the clear. Raises as `api_tls` does."""
    given = (
        settings.internal_ssl_certfile,
        settings.internal_ssl_keyfile,
        settings.internal_ssl_ca_certs,
    )
    if None in given:
        return None
    certfile, keyfile, authorities = (_path(cast(str, path)) for path in given)
    return TlsFiles(
        certfile, keyfile, authorities, settings.internal_ssl_name, settings="internal_ssl"
    ).checked()


def renewing_server_context(files: TlsFiles) -> ssl.SSLContext:
    """A server's context; each connection gets the files as they are when it begins."""
    renewing = Renewing(files, TlsFiles.server_context)

    def take_current(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = renewing.current()

    context = files.server_context()
    context.sni_callback = take_current  # OpenSSL calls it for every connection, with a name or without
    return context


def _handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None
) -> dict[str, tuple[tuple[str, str], ...]]:
    """The server's certificate, as the client sees it in a handshake in memory. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server, server_hostname=name)
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client_side, server_side):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return cast(dict[str, tuple[tuple[str, str], ...]], client_side.getpeercert() or {})


def _sentence(verify_message: str) -> str:
    """OpenSSL's words about a certificate, to go after its name."""
    if "issuer" in verify_message or "self-signed" in verify_message or "self signed" in verify_message:
        return f"does not come from the authorities given ({verify_message})"
    return f"cannot be used: {verify_message}"


def _path(text: str) -> Path:
    return Path(text).expanduser()
