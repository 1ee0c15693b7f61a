"""What kernels are launched by, of the device they run on."""

from dataclasses import dataclass

import torch
from triton.runtime import driver

# Compute capability from which on a kernel may start before the one ahead has ended.
_OVERLAPPING = (9, 0)


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """multiprocessors: how many. shared_memory: bytes a program may have. overlaps: see `overlap`."""

    multiprocessors: int
    shared_memory: int = 227 << 10
    overlaps: bool = False

    @classmethod
    def of(cls, device: torch.device) -> "DeviceTraits":
        properties = torch.cuda.get_device_properties(device)
        # As Triton sees it, which has to fit its programs into it.
        index = torch.cuda.current_device() if device.index is None else device.index
        limits = driver.active.utils.get_device_properties(index)
        return cls(
            properties.multi_processor_count,
            limits["max_shared_mem"],
            (properties.major, properties.minor) >= _OVERLAPPING,
        )

    @property
    def launch_options(self) -> dict[str, bool]:
        """For every kernel of ours."""
        # Multiply and add at once, which Triton is about to stop doing unless told.
        options = {"enable_fp_fusion": True, "OVERLAP": self.overlaps}
        return options | {"launch_pdl": True} if self.overlaps else options
