"""Programmatic dependent launch: a kernel's programs are in place before the kernel ahead of it has ended.

On devices of compute capability 9.0 and later a kernel can let the next one start early; that one then waits
where it first needs what was computed before it (CUDA C++ Programming Guide, "Programmatic Dependent Launch
and Synchronization"). So the launch of a kernel is hidden behind the kernel ahead.

Every kernel that is launched so must wait, in each of its programs, before it reads or writes anything that
another kernel touches: only then is all that ran before it known to be done when it ends.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def let_next_kernel_start(OVERLAP: tl.constexpr):
    """The next kernel may start once all programs of this one have said so."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_kernel_ahead(OVERLAP: tl.constexpr):
    """Waits until the kernel ahead has ended and what it wrote can be seen."""
    if OVERLAP:
        gdc_wait()
