"""What makes training faster on a GPU: reduced precision, the loss scaled where that needs it, and compiled losses.

Weights, their average, Adam's moments and held-out losses stay in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spatialscope_dist.options import TrainOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Acceleration:
    """Precision of the network's products (None: single), and whether its loss is compiled."""

    device: torch.device
    precision: torch.dtype | None
    compiled: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context a loss is worked out in."""
        import torch

        return nullcontext() if self.precision is None else torch.autocast(self.device.type, dtype=self.precision)

    def faster(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the loss function, compiled if that is wanted."""
        import torch

        return torch.compile(loss) if self.compiled else loss

    def scaler(self) -> torch.amp.GradScaler:
        """Return what scales losses: half precision alone would lose small gradients; otherwise it does nothing."""
        import torch

        return torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)


def acceleration_for(options: TrainOptions, device: torch.device) -> Acceleration:
    """Return what the options ask for; "auto" changes nothing on a CPU, so results there are those of any CPU."""
    import torch

    on_gpu = device.type == "cuda"
    precision: str = options.mixed_precision
    if precision == "auto" and on_gpu:
        precision = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    compiled = on_gpu if options.compiled == "auto" else options.compiled == "on"
    return Acceleration(device, None if precision in {"auto", "off"} else getattr(torch, precision), compiled)
