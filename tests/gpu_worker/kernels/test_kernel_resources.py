"""The kernels compile for the GPUs they are meant for, which the interpreter cannot tell."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_kernels_compile_for_hopper_without_spilling_registers():
    # In a process of its own: this one may be set to interpret.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernel_resources"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wgmma" in done.stdout
