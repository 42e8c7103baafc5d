"""Weights of `Vision` under the names of transformers' files, both ways, and nothing left over.

Three spellings of a file are read: with `vision_model.` before every name (what the hub has), without (what
transformers 5 writes), and a pair of towers, of which the text tower is left where it is.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from quintet.components.encoders.hf_config import as_published, from_hf, to_hf
from quintet.components.encoders.vision import Vision
from quintet.components.llms.weights import SafetensorsFolder, some
from quintet.errors import CheckpointError

__all__ = ["load_hf_folder", "load_hf_state", "save_hf_folder", "to_hf_state"]

_PREFIXES = ("vision_model.", "dinov2.")
_FOREIGN = re.compile(
    r"(text_model|text_projection|visual_projection|logit_scale|logit_bias|classifier"
    r"|query_tokens|qformer|language_projection|language_model)\b.*"
)
"""Weights of the classes around the vision tower."""
_DERIVED = re.compile(r".*position_ids|embeddings\.mask_token")
"""A buffer that old files carry, and DINOv2's token for masked pre-training."""

_CLIP = {
    "embeddings.class_embedding": "cls",
    "embeddings.patch_embedding": "patches",
    "embeddings.position_embedding.weight": "positions",
    "pre_layrnorm": "pre_norm",
    "encoder.layers": "layers",
    "post_layernorm": "norm",
    "head": "head",
}
_DINOV2 = {
    "embeddings.cls_token": "cls",
    "embeddings.patch_embeddings.projection": "patches",
    "embeddings.position_embeddings": "positions",
    "encoder.layer": "layers",
    "layernorm": "norm",
}
_BLIP2 = {
    "embeddings.class_embedding": "cls",
    "embeddings.patch_embedding": "patches",
    "embeddings.position_embedding": "positions",
    "encoder.layers": "layers",
    "post_layernorm": "norm",
}
_EVA2 = {
    "patch_embedding.cls_embedding": "cls",
    "patch_embedding.proj": "patches",
    "patch_embedding.position_embedding.weight": "positions",
    "transformer.layers": "layers",
}
"""As CogVLM's file has it under `model.vision`."""
_NAMES = {"clip": _CLIP, "siglip": _CLIP, "dinov2": _DINOV2, "blip2": _BLIP2, "eva2": _EVA2}
_SPELLINGS = [("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj")]
_SPELLINGS += [("attention.attention.value", "attention.v_proj"), ("attention.output.dense", "attention.o_proj")]
"""DINOv2's attention: in files and in transformers before 5.23, and in its memory since."""


def load_hf_state(encoder: Vision, state: Mapping[str, Tensor]) -> None:
    """Copies published weights into the encoder, cast to its dtype; those it has no use for are left.

    Raises:
        CheckpointError: missing or unexpected names, or a shape that does not fit; nothing is copied then.
    """
    ours = encoder.state_dict()
    found: dict[str, str] = {}
    unexpected: list[str] = []
    for name in state:
        own = _own(name, encoder.config, ours)
        if own is None:
            unexpected.append(name)
        elif own:
            found[own] = name
    missing = [_published(name, encoder.config) for name in ours if name not in found]
    if missing or unexpected:
        raise CheckpointError(
            f"weights do not match the {encoder.config.family} encoder: missing {some(missing)};"
            f" unexpected {some(unexpected)}"
        )
    tensors = {own: state[name].reshape(_flat(own, state[name])) for own, name in found.items()}
    if not encoder.config.class_token:  # its row is the first of the file's
        tensors["positions"] = tensors["positions"][-len(ours["positions"]) :]
    for own, value in tensors.items():
        if value.shape != ours[own].shape:
            raise CheckpointError(
                f"{found[own]} is {tuple(value.shape)} in the file and {tuple(ours[own].shape)} in the encoder"
            )
    with torch.no_grad():
        for own, value in tensors.items():
            ours[own].copy_(value)


def to_hf_state(encoder: Vision) -> dict[str, Tensor]:
    """The encoder's weights as transformers writes them, for the config that `to_hf` gives.

    A last norm that was not kept is written as one that changes nothing: the class has it, the features do not.
    """
    config = encoder.config
    out = {_published(name, config): _shaped(name, value, config) for name, value in encoder.state_dict().items()}
    norm = "layernorm" if config.family == "dinov2" else "post_layernorm"
    if f"{norm}.weight" not in out:
        like = encoder.positions
        out[f"{norm}.weight"], out[f"{norm}.bias"] = like.new_ones(config.width), like.new_zeros(config.width)
    return out


def load_hf_folder(encoder: Vision, folder: Path) -> None:
    """Loads the published encoder that a local folder holds (`config.json` and safetensors).

    Raises:
        CheckpointError: no such folder, another encoder's settings, or weights that do not match it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no config.json; expected a folder as transformers saves it")
    theirs, ours = as_published(from_hf(json.loads(path.read_text()))), as_published(encoder.config)
    if theirs.depth == encoder.config.num_run:
        # A file that ends at the feature layer is as good as a whole one.
        theirs = replace(theirs, depth=ours.depth)
    names = [f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)]
    if names:
        facts = "; ".join(f"{n} is {getattr(theirs, n)!r}, expected {getattr(ours, n)!r}" for n in names)
        raise CheckpointError(f"{path} describes another encoder: {facts}")
    load_hf_state(encoder, SafetensorsFolder(folder))


def save_hf_folder(encoder: Vision, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` as transformers' own class reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf(encoder.config), indent=2) + "\n")
    state = {name: value.detach().contiguous() for name, value in to_hf_state(encoder).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _own(name: str, config: Vision.Config, known: Iterable[str]) -> str | None:
    """Our name for a published one; "" if we have no use for it, None if we do not know it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if _FOREIGN.fullmatch(name) or _DERIVED.fullmatch(name):
        return ""
    named = [pair for pair in _NAMES[config.family].items() if name == pair[0] or name.startswith(pair[0] + ".")]
    if not named:
        return None
    ((theirs, ours),) = named
    if ours == "cls" and not config.class_token:
        return ""
    rest = name[len(theirs) :]
    if ours == "layers":
        index, _, weight = rest[1:].partition(".")
        if not index.isdecimal() or int(index) >= config.depth:
            return None
        over = int(index) - config.num_run
        own = f"layers.{index}.{weight}" if over < 0 else f"unused.layers.{over}.{weight}"
    elif ours == "head" or (ours == "norm" and not config.norm):
        own = f"unused.{ours}{rest}"
    else:
        own = ours + rest
    if own in known:
        return own
    for old, new in _SPELLINGS:
        for spelt in (own.replace(old, new), own.replace(new, old)):
            if spelt != own and spelt in known:
                return spelt
    return "" if own.startswith("unused.") and _is_dropped(own, config) else None


def _is_dropped(own: str, config: Vision.Config) -> bool:
    """Whether a weight that nothing runs is also not kept."""
    return not config.keep_unused or (own.startswith("unused.head") and not config.head)


def _published(own: str, config: Vision.Config) -> str:
    """The name in a transformers file of a weight of ours."""
    name = own.removeprefix("unused.")
    if name != own and name.startswith("layers."):
        _, index, rest = name.split(".", 2)
        name = f"layers.{int(index) + config.num_run}.{rest}"
    for theirs, ours in _NAMES[config.family].items():
        if name == ours or name.startswith(ours + "."):
            name = theirs + name[len(ours) :]
            break
    for old, new in _SPELLINGS if config.family == "dinov2" else ():
        name = name.replace(new, old)
    return name


def _flat(own: str, value: Tensor) -> tuple[int, ...]:
    """DINOv2 and BLIP-2 write the class token and the positions with leading ones."""
    if own == "cls":
        return (value.numel(),)
    return tuple(value.shape[-2:]) if own == "positions" else tuple(value.shape)


def _shaped(own: str, value: Tensor, config: Vision.Config) -> Tensor:
    """The inverse of `_flat`."""
    if config.family in ("dinov2", "blip2") and own in ("cls", "positions"):
        return value.view(1, -1, config.width)
    return value
