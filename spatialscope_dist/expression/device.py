"""The device torch works on: the GPU of this process when it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def working_device() -> torch.device:
    """Return the first CUDA device this process may use, the CPU when there is none.

    A worker sees one GPU only: the engine sets CUDA_VISIBLE_DEVICES for each process.
    """
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
