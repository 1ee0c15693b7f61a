import subprocess
import sys

import pytest

CODE = """
import signal, sys
from batchyard.lifeline import end_with_parent
end_with_parent(0, grace_s=0.05)
{}
print("ready", flush=True)
while True: signal.pause()
"""


@pytest.mark.parametrize(
    ("setup", "code"),
    [
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 7),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", -9),
    ],
)
def test_ends_when_the_other_end_is_closed(setup, code):
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CODE.format(setup)], stdin=pipe, stdout=pipe) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(10) == code


def test_is_the_command():
    command = [sys.executable, "-m", "batchyard.lifeline", "severe"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith(b"batchyard: 'severe' is not a command")
        assert child.wait(10) == 2
