"""Templates that mean harm: what they reach, and what they keep from others. And those that do not."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from batchyard.errors import InvalidRequest
from gateway.body import MAX_BODY
from gateway.chat_template import ChatTemplate
from tests.gateway import tiny_tokenizers as tiny

USER = {"role": "user", "content": "How now?"}
PATIENCE_S = 1.0


@pytest.fixture(scope="module")
def chats():
    chats = ChatTemplate(PATIENCE_S)
    chats.start()
    yield chats
    chats.close()


def render(chats: ChatTemplate, template: str, *messages: dict, **options) -> str:
    return chats.render(template, messages or [USER], options)


TEMPLATES = [
    tiny.CHAT_TEMPLATE,
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson(indent=1) }}"
    "{% endfor %}",
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro turn(m) %}[{{ m.role }}: {{ m['content'] | trim }}]{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}\n{% endfor %}",
    "{% generation %}{{ messages[0].content.split('|') | join(', ') | upper }}{% endgeneration %}",
    "{{ dict(a=1).items() | list }}{{ strftime_now('%Y') | length }}{{ messages | length * 2 }}"
    "{{ '%05d' % 7 }}",
    "{{ bos_token }}{{ tools | tojson if tools else 'none' }}{{ add_generation_prompt }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_writes_what_transformers_makes_of_it(chats, template):
    messages = [USER, {"role": "assistant", "content": "Größe | 日本 \n \x00 \u2028"}, USER]
    options = {"bos_token": "<s>", "add_generation_prompt": True, "tools": [{"name": "f"}]}
    expected, _ = render_jinja_template([messages], chat_template=template, **options)
    assert render(chats, template, *messages, **options) == expected[0]


def test_half_a_surrogate_pair_comes_through(chats):
    assert render(chats, "{{ messages[0].content }}", {"content": "a\ud800"}) == "a\ud800"


def test_the_longest_conversation_comes_through():
    text = "a" * MAX_BODY + "\U0001f600"  # which makes each of them four bytes long
    chats = ChatTemplate()
    assert render(chats, tiny.CHAT_TEMPLATE, USER | {"content": text}).count("a") == MAX_BODY
    chats.close()


REACHES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{% for m in messages %}{{ m.update({'role': 'system'}) }}{% endfor %}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{% extends '/etc/passwd' %}",
]


@pytest.mark.parametrize("template", REACHES)
def test_no_template_reaches_out_of_the_sandbox(chats, template):
    """Jinja answers with an error, or with nothing where it takes the attribute for one that is not there."""
    try:
        text = render(chats, template)
    except InvalidRequest as error:
        text = str(error)
    for harm in ("root:", "PATH", "uid=", "<class", "builtin", "environ("):
        assert harm not in text


_BEYOND = """
import os, socket, sys
import gateway.template_process as process
process._load_all_modules()
process._give_up_rights()

def allowed(what):
    try:
        what()
    except OSError:
        return False
    return True

attempts = [lambda: open("/etc/passwd"), lambda: open(sys.argv[1], "w"), socket.socket, os.pipe]
if os.getuid():  # the kernel lets root start processes, whatever was given up
    attempts.append(os.fork)
print([allowed(attempt) for attempt in attempts])
"""


def test_beyond_the_sandbox_is_nothing(tmp_path):
    """As if Jinja had a hole: what the process gave up is gone."""
    run = subprocess.run(
        [sys.executable, "-c", _BEYOND, str(tmp_path / "new")], capture_output=True, text=True, check=True
    )
    assert set(run.stdout.strip("[]\n").split(", ")) == {"False"}


def test_the_process_gets_none_of_our_secrets(monkeypatch):
    monkeypatch.setenv("BATCHYARD_API_KEY", "sesame")
    monkeypatch.setenv("HF_TOKEN", "sesame")
    before = children()
    chats = ChatTemplate()
    chats.start()
    (child,) = newcomers(before)
    assert b"sesame" not in (child / "environ").read_bytes()
    chats.close()
    assert children() == before


HANGS = [
    "{{ 10 ** (10 ** 10) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = (range(99999) | list | sort | reverse | list) %}{% endfor %}",
    "{% for i in range(99999) %}{% set y = ('a' * 50000).replace('a', 'bc') | length %}{% endfor %}",
]
SWELLS = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ [0] * 10 ** 10 }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    "{{ ns.x }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ 'a' | center(9999999999) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endset %}{{ x }}",
    "{{ messages[0].content * 40000000 }}",
]
BREAKS = [
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if %}",
]


@pytest.mark.parametrize("template", HANGS)
def test_a_template_that_hangs_is_ended(chats, template):
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"longer than 1 s"):
        render(chats, template)
    assert time.monotonic() - began < 10 * PATIENCE_S
    chats.start()  # so that the next has all its time


@pytest.mark.parametrize("template", [*SWELLS, *BREAKS])
def test_a_template_that_swells_or_breaks_is_refused(chats, template):
    with pytest.raises(InvalidRequest) as caught:
        render(chats, template)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert render(chats, "{{ messages[0].content }}") == "How now?"


async def test_the_gateway_goes_on_meanwhile():
    tokenizer = tiny.byte_level()
    hanging = tiny.byte_level_with("{{ 10 ** (10 ** 10) }}")
    hanging.prepare_chats()
    refused = asyncio.create_task(hanging.render_chat_async([USER]))
    turns = 0
    while not refused.done():
        await tokenizer.encode_async("The quick brown fox " * 1000)  # in a thread
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(InvalidRequest, match="longer than"):
        await refused
    assert turns > 50


def test_a_process_that_was_killed_is_started_again(chats):
    assert render(chats, "{{ messages[0].content }}") == "How now?"
    for child in children():
        os.kill(int(child.name), signal.SIGKILL)
    assert render(chats, "{{ messages[0].content }}") == "How now?"


def newcomers(before: set[Path]) -> set[Path]:
    """Who is there and was not before. A process that has just begun has no command line yet."""
    deadline = time.monotonic() + 10
    while not (new := children() - before):
        assert time.monotonic() < deadline
    return new


def children() -> set[Path]:
    """Our processes that render chats: their folders in /proc."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            ours = f"PPid:\t{os.getpid()}\n" in (folder / "status").read_text()
            if ours and b"template_process" in (folder / "cmdline").read_bytes():
                found.add(folder)
    return found
