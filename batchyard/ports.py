"""Whether a port can be served, before anything slow is started."""

import errno
import socket

from batchyard.errors import AddressInUse, ConfigError


def check_port(host: str, port: int, flag: str) -> int:
    """`port`, or a free one where it is 0. `flag` is the setting that an error tells to change.

    Raises AddressInUse when another process serves there, ConfigError when we may not, or it is not our host.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host}: there is no such address") from error
    errors = []
    for family, kind, protocol, _, address in addresses:
        try:
            port = _bind(socket.socket(family, kind, protocol), (address[0], port, *address[2:]))
        except OSError as error:
            errors.append(error)
    # A name may stand for addresses of a family this machine lacks: one that works is enough.
    refused = [error for error in errors if error.errno != errno.EADDRNOTAVAIL]
    if refused or len(errors) == len(addresses):
        raise _explained((refused or errors)[0], host, port, flag) from errors[0]
    return port


def _bind(server: socket.socket, address: tuple[str | int, ...]) -> int:
    """The port that `server` got at `address`; it is given back at once."""
    with server:
        if server.family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Connections of a server that has just ended linger for a minute, and are in nobody's way.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        return int(server.getsockname()[1])


def _explained(error: OSError, host: str, port: int, flag: str) -> AddressInUse | ConfigError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{flag} {port}: another process uses this port on {host}; choose another port")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"--host {host}: this is not an address of this machine")
    return ConfigError(f"{flag} {port}: cannot serve on {host}: {error.strerror}")
