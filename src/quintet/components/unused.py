"""Weights that came with a published file and that nothing runs: kept for a lossless export, never trained."""

from torch import nn

__all__ = ["parameters_to_buffers"]


def parameters_to_buffers(module: nn.Module) -> None:
    """Every parameter below becomes a buffer of the same name: saved and moved with the module, never trained."""
    for owner in list(module.modules()):
        for name, value in list(owner._parameters.items()):
            del owner._parameters[name]
            if value is not None:
                owner.register_buffer(name, value.detach())
