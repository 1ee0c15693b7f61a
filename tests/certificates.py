"""Real certificates, of authorities that live as long as a test."""

from datetime import UTC, datetime
from pathlib import Path

import trustme

from batchyard.tls import TlsFiles


class Authority:
    """Issues certificates, as files in a folder. Another `name` is another authority."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA(organization_name=name)
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str = "us", *hosts: str, ends: datetime | None = None) -> TlsFiles:
        """The certificate `name`.pem with its key, for `hosts`, or else for 127.0.0.1. Both sides need one.

        Issued again under the same name, it is renewed in place.
        """
        cert = self._ca.issue_cert(*(hosts or ("127.0.0.1",)), not_after=ends)
        certfile, keyfile = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        # Moved into place, as whoever renews certificates does.
        for path, blobs in ((keyfile, [cert.private_key_pem]), (certfile, cert.cert_chain_pems)):
            new = path.with_suffix(".new")
            new.write_bytes(b"".join(blob.bytes() for blob in blobs))
            new.replace(path)
        return TlsFiles(certfile, keyfile, self.file)


YESTERDAY = datetime(2001, 1, 1, tzinfo=UTC)
"""When a certificate ended that has expired."""


def internal(files: TlsFiles) -> dict[str, str]:
    """The settings that name `files` for the connections between our processes."""
    return {f"internal_ssl_{what}": path for what, path in _paths(files).items()}


def api(files: TlsFiles, clients: bool = False) -> dict[str, str]:
    """The settings that name `files` for the APIs; with `clients`, these need certificates too."""
    return {f"ssl_{what}": path for what, path in _paths(files).items() if clients or what != "ca_certs"}


def _paths(files: TlsFiles) -> dict[str, str]:
    return {
        "certfile": str(files.certfile),
        "keyfile": str(files.keyfile),
        "ca_certs": str(files.ca_certs),
    }
