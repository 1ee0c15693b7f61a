"""A child process that ends when its parent does, however that ends.

The parent holds the only writing end of a pipe, and the child the other as its standard input. The kernel
closes the writing end even when the parent is killed, and the child reads the end of the file.

`python -m batchyard.lifeline COMMAND` is the `batchyard` command tied to its parent like that.
"""

import os
import signal
import threading
import time

GRACE_S = 5.0


def end_with_parent(pipe: int, grace_s: float = GRACE_S) -> None:
    """Sends this process SIGTERM when `pipe` is closed on the other side, and SIGKILL `grace_s` later."""

    def watch() -> None:
        while os.read(pipe, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    end_with_parent(0)

    from batchyard.cli import main

    main()
