"""A network between two namespaces that loses, delays or stops packets.

                 host's namespace                           a namespace of its own
    scheduler ── TCP ── near end ══▶ this module ══▶ far end ── TCP ── worker
                        10.88.0.1    packets, one by one         10.88.0.2

Both ends are TUN devices: what the kernel routes into one is read here as packets and written to the other,
or not. It is what `tc netem` does, on machines whose kernel has no netem too. Only root may.
"""

import asyncio
import fcntl
import itertools
import os
import random
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET = 1 << 16  # bytes
_NAMESPACES, _PREFIX = "/run/netns", "by"

_numbers = itertools.count()  # of the wires of this process


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to a packet, in either direction."""

    loss: float = 0.0  # share
    delay_s: float = 0.0


CALM = Weather()
CUT = Weather(loss=1.0)


def allowed() -> bool:
    """Whether this process may make namespaces and devices."""
    return os.geteuid() == 0 and os.path.exists("/dev/net/tun")


class Wire:
    """A context manager, for use on an event loop. Raises OSError or CalledProcessError where not allowed."""

    def __init__(self, seed: int = 0) -> None:
        self.weather = CALM
        self.dropped = 0  # packets
        number = next(_numbers)
        name = f"{_PREFIX}{os.getpid()}-{number}"
        self._namespace, self._near, self._far = name, f"{name}n", f"{name}f"
        network = f"10.{88 + number % 100}.{os.getpid() % 250}"
        self.near_host, self.far_host = f"{network}.1", f"{network}.2"
        self._random = random.Random(seed)
        self._ends: list[int] = []

    @property
    def inside(self) -> list[str]:
        """What a command begins with that is to run at the far end."""
        return ["ip", "netns", "exec", self._namespace]

    def __enter__(self) -> "Wire":
        try:
            self._lay()
        except BaseException:
            self.__exit__()
            raise
        loop = asyncio.get_running_loop()
        near, far = self._ends
        loop.add_reader(near, self._pass_on, near, far)
        loop.add_reader(far, self._pass_on, far, near)
        return self

    def __exit__(self, *_: object) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)
        _ip("netns", "del", self._namespace, check=False)

    def _lay(self) -> None:
        _remove_orphans()
        self._ends = [_tun(self._near), _tun(self._far)]
        inside = ("-n", self._namespace)
        _ip("netns", "add", self._namespace)
        _ip("link", "set", self._far, "netns", self._namespace)
        _ip("addr", "add", self.near_host, "peer", self.far_host, "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip(*inside, "addr", "add", self.far_host, "peer", self.near_host, "dev", self._far)
        _ip(*inside, "link", "set", self._far, "up")
        _ip(*inside, "link", "set", "lo", "up")

    def _pass_on(self, source: int, target: int) -> None:
        packet = os.read(source, _PACKET)
        if self._random.random() < self.weather.loss:
            self.dropped += 1
        elif self.weather.delay_s:
            asyncio.get_running_loop().call_later(self.weather.delay_s, self._write, target, packet)
        else:
            self._write(target, packet)

    def _write(self, target: int, packet: bytes) -> None:
        if target in self._ends:
            with suppress(BlockingIOError):  # the queue of the device is full: it is lost, as on any network
                os.write(target, packet)


def _remove_orphans() -> None:
    """Namespaces of processes that were killed."""
    for name in os.listdir(_NAMESPACES) if os.path.isdir(_NAMESPACES) else ():
        pid = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            _ip("netns", "del", name, check=False)


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)
