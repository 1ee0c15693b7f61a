"""The form of a Redis URL, checked before a client sees it: its words about a bad one may show the password.

redis://[[user]:password@]host[:port][/db]     in the clear
rediss://…?ssl_ca_certs=FILE                   over TLS; with ssl_certfile and ssl_keyfile it is mutual
unix://[[user]:password@]/path?db=N            a Unix socket
"""

import os
from urllib.parse import parse_qs, urlsplit

SCHEMES = ("redis", "rediss", "unix")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def check_redis_url(url: str) -> str:
    """`url`. Raises ValueError with what is wrong; nothing of `url` is in it but names of files."""
    try:
        parts = urlsplit(url)
        bad_port = parts.scheme != "unix" and parts.port == 0
    except ValueError:  # whose words may be a password, where that has a / or a # in it
        bad_port = True
    if (
        bad_port
        or parts.scheme not in SCHEMES
        or not (parts.path if parts.scheme == "unix" else parts.hostname)
    ):
        raise ValueError(
            "this is not a Redis URL: rediss://:PASSWORD@HOST:PORT/DB, redis:// in the clear, or unix:// for "
            "a socket (in a password, write / as %2F, # as %23, @ as %40)"
        )
    asked = parse_qs(parts.query)
    for name in _FILES:
        for path in asked.get(name, []):
            if not os.access(path, os.R_OK):
                raise ValueError(f"{name}: there is no file {path} that may be read")
    return url
