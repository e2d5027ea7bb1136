"""Where a model wants its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

CPU = torch.device("cpu")


def input_device(model: nn.Module) -> torch.device:
    """Return the device that a model's inputs belong on: where the first weights that it works with are.

    Weights that accelerate has offloaded stand on the meta device and are fetched to where its hook says, whatever the
    device that they wait on.

    Args:
        model: any; one without weights works on the CPU.

    >>> input_device(nn.Linear(2, 2))
    device(type='cpu')
    """
    for module in model.modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        fetched = next(_fetched_to(getattr(module, "_hf_hook", None)), None)
        if fetched is not None and any(tensor.is_meta for tensor in tensors):
            return torch.device(fetched)
        for tensor in module.parameters(recurse=False):
            if not tensor.is_meta:
                return tensor.device
    return CPU


def _fetched_to(hook: Any) -> Iterator[Any]:
    """Yield the devices that a hook of accelerate's, or those that it is made of, bring weights to."""
    for one in getattr(hook, "hooks", (hook,)):
        device = getattr(one, "execution_device", None)
        if device is not None:
            yield device
