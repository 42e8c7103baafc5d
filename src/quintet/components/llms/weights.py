"""Weights of our decoder under the names of transformers' files, both ways, and nothing left over.

One layer of ours is one layer of theirs, so the map is names only. Folders are read as safetensors, whole or in
shards; pickled weights are never opened.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quintet.components.llms.decoder import Decoder
from quintet.errors import CheckpointError

__all__ = ["SafetensorsFolder", "finite", "hf_name", "load_hf_state", "some", "to_hf_state"]

_LAYER = {"attend_norm": "input_layernorm", "attn": "self_attn", "feed_norm": "post_attention_layernorm", "mlp": "mlp"}
_TOP = {"embedding": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
_DERIVED = "rotary_emb.inv_freq"
"""A buffer that old Llama files carry; it is a function of the config."""


def hf_name(name: str) -> str:
    """The name in a transformers file of a weight of ours.

    >>> hf_name("blocks.3.attn.q_proj.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    first, _, rest = name.partition(".")
    if first != "blocks":
        return f"{_TOP[first]}.{rest}"
    index, part, rest = rest.split(".", 2)
    return f"model.layers.{index}.{_LAYER[part]}.{rest}"


def to_hf_state(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's weights under transformers' names, not copied. A tied head is not written twice.

    Raises:
        CheckpointError: an adapter that is not merged; its file is another (`quintet.components.lora.save`).
    """
    state = decoder.state_dict()
    if any(".lora_" in name for name in state):
        raise CheckpointError("the decoder has an adapter: load before applying one, merge it before saving")
    return {hf_name(name): weight for name, weight in state.items()}


@torch.no_grad()
def load_hf_state(decoder: Decoder, state: Mapping[str, Tensor]) -> None:
    """Copies published weights into the decoder, cast to its dtype.

    Where the decoder has more rows of vocabulary than the file (added tokens), the new rows get the mean of the
    published ones, so that at first they are as likely as an average token (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models").

    Raises:
        CheckpointError: missing or unexpected names, or a shape that does not fit; nothing is copied then.
    """
    ours = to_hf_state(decoder)
    assert not any(weight.is_meta for weight in ours.values()), "materialise the decoder before loading into it"
    theirs = {name for name in state if not name.endswith(_DERIVED)}
    if decoder.cfg.tie_head and "lm_head.weight" in theirs:
        if not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"]):
            raise CheckpointError(
                "the config ties the head to the embedding, but the file has two different weights; set tie_head=False"
            )
        theirs.discard("lm_head.weight")
    if ours.keys() != theirs:
        raise CheckpointError(
            f"weights do not match the decoder: missing {some(ours.keys() - theirs)};"
            f" unexpected {some(theirs - ours.keys())}"
        )
    for name, weight in ours.items():
        found = _shape(state, name)
        grows = name in ("model.embed_tokens.weight", "lm_head.weight") and found[0] <= weight.shape[0]
        if found != tuple(weight.shape) and not (grows and found[1:] == tuple(weight.shape[1:])):
            raise CheckpointError(f"{name} is {found} in the file and {tuple(weight.shape)} in the decoder")
    for name, weight in ours.items():
        published = state[name]
        weight[: len(published)].copy_(published)
        if len(published) < len(weight):
            weight[len(published) :] = published.float().mean(0).to(weight)


class SafetensorsFolder(Mapping[str, Tensor]):
    """The weights of a folder by name, read from disk one by one: `model.safetensors`, or shards and their index."""

    def __init__(self, folder: Path, *, prefix: str = "", file: str = "model.safetensors") -> None:
        """`prefix` selects the names that begin with it, and is cut off (`language_model.`).

        Who does not save as transformers does calls the `file` otherwise (`open_clip_model.safetensors`).

        Raises:
            CheckpointError: no safetensors in the folder, or an index that names files outside it or not there.
        """
        index, single = folder / f"{file}.index.json", folder / file
        if index.is_file():
            where = json.loads(index.read_text())["weight_map"]
        elif single.is_file():
            with _opened(single) as opened:
                where = dict.fromkeys(opened.keys(), single.name)
        else:
            pickled = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
            hint = f"; {pickled[0]} is pickled and never opened, convert it to {file}" if pickled else ""
            raise CheckpointError(f"{folder} holds no {file} and no index of shards{hint}")
        for name in sorted(set(where.values())):
            if Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{index}: {name!r} is not a file in this folder")
        self._files = {name[len(prefix) :]: folder / shard for name, shard in where.items() if name.startswith(prefix)}
        self._prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        """Raises CheckpointError: numbers that are not finite."""
        with _opened(self._files[name]) as file:
            return finite(file.get_tensor(self._prefix + name), name=name, where=self._files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, from the file's header alone."""
        with _opened(self._files[name]) as file:
            return tuple(file.get_slice(self._prefix + name).get_shape())


def finite(value: Tensor, *, name: str, where: object) -> Tensor:
    """The weight, which must be made of numbers: a NaN in it would make every loss and every logit one.

    Raises:
        CheckpointError: it holds NaN or infinite numbers.
    """
    if value.is_floating_point() and value.element_size() > 1 and not (good := torch.isfinite(value)).all():
        raise CheckpointError(
            f"{where}: {int((~good).sum()):,} of the {value.numel():,} numbers of {name} are NaN or infinite; the "
            "weights are damaged, or their training diverged: take those of another checkpoint"
        )
    return value


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); fetch it again") from None


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return state.shape(name) if isinstance(state, SafetensorsFolder) else tuple(state[name].shape)


def some(names: Collection[str]) -> str:
    """The first five of names, and how many more there are."""
    listed = ", ".join(sorted(names)[:5]) or "none"
    return f"{listed} and {len(names) - 5} more" if len(names) > 5 else listed
