"""The process that renders chat templates: programs out of a model's folder, of which nothing is known.

It is started by `gateway.chat_template`, and reads and writes messages there: a length (4 bytes, the highest
first), then JSON.

    {"template", "messages", "options"}   in, from standard input
    {"text"} or {"error"}                 out, one for each; and {} once, when it has started

Rendering is that of transformers, in jinja2's ImmutableSandboxedEnvironment. A template that gets out of that
finds a process without our environment (and its keys) that may open nothing, start nothing, and take so
much memory; its parent ends it when it takes too long.
"""

import contextlib
import json
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from transformers.utils.chat_template_utils import render_jinja_template

MEMORY = 512 << 20  # bytes: the longest conversation that a body holds takes half of it
MAX_TEXT = 32 << 20  # characters: several times what fits into a request's body

LENGTH = struct.Struct("!I")


def main(source: BinaryIO, sink: BinaryIO) -> None:
    """Answers until `source` ends, which it does when the parent ends."""
    # Ctrl-C in a terminal is for the parent, which may have answers to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _load_all_modules()
    _give_up_rights()
    _write(sink, {})
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        request = json.loads(source.read(LENGTH.unpack(head)[0]))
        try:
            reply = {"text": _render(**request)}
        except Exception as error:  # a template is a program, and may raise anything
            reply = {"error": str(error).partition("\n")[0] or type(error).__name__}
        _write(sink, reply)


def _render(template: str, messages: list[Any], options: dict[str, Any]) -> str:
    texts, _ = render_jinja_template([messages], chat_template=template, **options)
    text: str = texts[0]
    if len(text) > MAX_TEXT:
        raise ValueError(f"it wrote more than {MAX_TEXT} characters")
    return text


def _load_all_modules() -> None:
    """Some are imported only when a template uses them, or fails."""
    used = "{{ strftime_now('%Y') }}{{ messages | tojson | pprint }}{{ lipsum(1) }}{{ raise_exception('') }}"
    with contextlib.suppress(Exception):
        _render(used, [{"role": "user"}], {})


def _give_up_rights() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for right in (
        resource.RLIMIT_NOFILE,  # the three that are open stay so
        resource.RLIMIT_NPROC,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_CORE,
    ):
        resource.setrlimit(right, (0, 0))


def encoded(message: Mapping[str, Any]) -> bytes:
    """JSON; half a surrogate pair, which is no text, comes through it as it is."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _write(sink: BinaryIO, message: dict[str, str]) -> None:
    data = encoded(message)
    sink.write(LENGTH.pack(len(data)) + data)
    sink.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
