"""Counters by which the last of several programs knows that it is the last."""

import torch

# More than any kernel needs: those that count are launched with few programs.
_COUNTERS = 1 << 14


class Arrivals:
    """Zeros on the device; each kernel that counts on them leaves zeros. Steps run in order on one stream."""

    def __init__(self) -> None:
        self._zeros: torch.Tensor | None = None

    def on(self, device: torch.device, count: int) -> torch.Tensor:
        """At least `count` zeros, int32, always at the same place."""
        if count > _COUNTERS:
            raise AssertionError(f"{count} counters wanted of {_COUNTERS}")
        if self._zeros is None:
            # A tensor made in inference mode could not be passed to what runs outside it.
            with torch.inference_mode(False):
                self._zeros = torch.zeros(_COUNTERS, dtype=torch.int32, device=device)
        return self._zeros
