"""The weights of a released folder, whatever their files: safetensors, or torch's own, of which only tensors are read.

Released checkpoints are often `.bin`, `.pth` or `.pt`. Those are opened with `torch.load(weights_only=True)` alone,
which makes tensors and plain containers and refuses everything else; no code of a file is run.
"""

import pickle
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quintet.components.llms.weights import finite
from quintet.errors import CheckpointError

__all__ = ["Weights"]

_NESTED = ("model", "state_dict", "model_state_dict", "module")
"""Where training loops put the weights in a file that holds more."""
_WRAPPED = "module."
"""What DistributedDataParallel puts before every name."""
_OTHERS = ("training_args", "optimizer", "scheduler", "rng_state")
"""Files of the same ending that hold no model."""


class Weights(Mapping[str, Tensor]):
    """The weights of all files of a folder by name; those of safetensors are read one by one."""

    def __init__(self, folder: Path) -> None:
        """Reads the safetensors of the folder, or where there are none its `.bin`, `.pth` and `.pt` files.

        Raises:
            CheckpointError: none of these; a file that is damaged, holds more than tensors, or a name twice.
        """
        self._folder = folder
        self._lazy: dict[str, Path] = {}
        self._held: dict[str, Tensor] = {}
        self._names: dict[str, str] = {}
        paths = sorted(folder.glob("*.safetensors")) or sorted(
            path
            for path in folder.iterdir()
            if path.suffix in (".bin", ".pth", ".pt") and not path.name.startswith(_OTHERS)
        )
        if not paths:
            raise CheckpointError(f"{folder} holds no .safetensors, .bin, .pth or .pt file")
        for path in paths:
            names = self._open(path)
            for name in names:
                bare = name.removeprefix(_WRAPPED)
                if bare in self._names:
                    raise CheckpointError(f"{path}: {bare} is in two files of {folder}; leave one there")
                self._names[bare] = name

    def _open(self, path: Path) -> list[str]:
        if path.suffix == ".safetensors":
            with _opened(path) as file:
                names = list(file.keys())
            self._lazy |= dict.fromkeys(names, path)
            return names
        tensors = _tensors(path)
        self._held |= tensors
        return list(tensors)

    def __getitem__(self, name: str) -> Tensor:
        """Raises CheckpointError: numbers that are not finite."""
        spelt = self._names[name]
        if spelt in self._held:
            return finite(self._held[spelt], name=name, where=self._folder)
        with _opened(self._lazy[spelt]) as file:
            return finite(file.get_tensor(spelt), name=name, where=self._lazy[spelt])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, from the file's header alone."""
        return self._slice(name)[0]

    def dtype(self, name: str) -> torch.dtype:
        """Its type."""
        return self._slice(name)[1]

    def _slice(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        spelt = self._names[name]
        if spelt in self._held:
            return tuple(self._held[spelt].shape), self._held[spelt].dtype
        with _opened(self._lazy[spelt]) as file:
            part = file.get_slice(spelt)
            # A row alone tells the type without the rest.
            shape = tuple(part.get_shape())
            return shape, (part[:1] if shape else file.get_tensor(spelt)).dtype


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); fetch it again") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of torch's own file; of a training loop's, those of the model."""
    try:
        # A training loop saves its arguments beside the weights; a Namespace is a plain container, too.
        with torch.serialization.safe_globals([Namespace]):
            held: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as tensors alone ({reason}); no code of a file is run") from None
    for key in _NESTED:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in held.items()):
        raise CheckpointError(f"{path} holds no weights by name")
    return held
