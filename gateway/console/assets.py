"""The files of the console's page: read once, served with what keeps a browser from running anything else."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Nothing from elsewhere, nothing inline, in nobody's frame. Under Trusted Types the browser refuses to read
# any text as HTML, so that what a request or a worker is called cannot become part of the page.
# https://www.w3.org/TR/CSP3/, https://www.w3.org/TR/trusted-types/
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, and the headers it is served with."""

    content: bytes
    headers: Mapping[str, str]

    @property
    def etag(self) -> str:
        """Changes with the content."""
        return self.headers["ETag"]


def load_assets() -> dict[str, Asset]:
    """All of them, by name."""
    page = resources.files("gateway.console") / "page"
    return {file.name: _asset(file.name, file.read_bytes()) for file in page.iterdir() if file.is_file()}


def _asset(name: str, content: bytes) -> Asset:
    headers = {
        "Content-Type": _TYPES[name[name.rindex(".") :]],
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        # Kept, and asked about each time: the answer is 304 until there is another version.
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Asset(content, headers)
