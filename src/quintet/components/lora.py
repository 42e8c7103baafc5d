"""Low-rank adapters: y = Wx + (α / r) · B A x, with W frozen (Hu et al. 2021, arXiv:2106.09685), and DoRA.

A layer keeps its weight under its own name and only gains `lora_A` and `lora_B`, so that loading, saving and merging
the base never need to know about adapters. Files are peft's (`adapter_model.safetensors`, `adapter_config.json`):
what we write peft loads onto the transformers model, and the other way round.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quintet.config.base import Config
from quintet.errors import CheckpointError, ConfigError, nearest

__all__ = [
    "Lora",
    "LoraLinear",
    "apply",
    "borrowed",
    "disabled",
    "has",
    "load",
    "lora_parameters",
    "merge",
    "same_name",
    "save",
    "using",
]

ALL_LINEAR = "all-linear"
_HEADS = ("lm_head", "embed_out")
"""Output layers, which "all-linear" leaves out, as peft does."""
_PREFIX = "base_model.model."
_REFUSED = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_to_transform",
    "layer_replication",
    "exclude_modules",
    "trainable_token_indices",
    "target_parameters",
    "fan_in_fan_out",
    "lora_bias",
)
"""Settings of peft that change what an adapter computes, and that ours does not have."""


@dataclass(frozen=True, kw_only=True)
class Lora(Config):
    """Settings of an adapter."""

    rank: int = 16
    alpha: float = 32.0
    """The update is scaled by alpha / rank, or alpha / √rank with `rslora`."""
    dropout: float = 0.0
    """Share of the inputs that the update does not see in training."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Last parts of the names of linear layers ("q_proj"), or "all-linear" (all but the head)."""
    use_dora: bool = False
    """Also learn the length of each row of the weight (Liu et al. 2024, arXiv:2402.09353)."""
    rslora: bool = False
    """Scale by 1 / √rank (Kalajdzievski 2023, arXiv:2312.03732)."""
    beside: tuple[str, ...] = ()
    """Further adapters over the same weights, by name, which compute where they are asked for (`using`)."""

    def __post_init__(self) -> None:
        if self.beside and self.use_dora:
            raise ConfigError("adapters beside the first one are plain LoRA; take use_dora=false")
        if self.rank < 1:
            raise ConfigError(f"lora rank is {self.rank}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora dropout is {self.dropout}; it is a share, from 0 to under 1")
        if not self.targets:
            raise ConfigError('lora targets are empty; name linear layers, or say ("all-linear",)')

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def matches(self, name: str) -> bool:
        """Whether the linear layer of that full name gets an adapter."""
        if self.targets == (ALL_LINEAR,):
            return name.rpartition(".")[2] not in _HEADS
        return any(name == target or name.endswith(f".{target}") for target in self.targets)


Update = tuple[Tensor, Tensor, float]
"""A float[r, in], B float[out, r] and the scale."""


class Pair(nn.Module):
    """An adapter beside the first: A float[r, in], B float[out, r]."""

    def __init__(self, like: "LoraLinear") -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty_like(like.lora_A))
        self.lora_B = nn.Parameter(torch.zeros_like(like.lora_B))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))


class LoraLinear(nn.Linear):
    """A linear layer with an update of rank r: `lora_A` float[r, in], `lora_B` float[out, r].

    Updates of low-precision weights are kept in float32: in bfloat16 an optimizer's small steps round to nothing.
    """

    def __init__(self, base: nn.Linear, cfg: Lora) -> None:
        # No weight of its own: the base's parameter object moves in, so optimizers and ties stay valid.
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.cfg, self.active = cfg, True
        like = {"device": base.weight.device, "dtype": torch.promote_types(base.weight.dtype, torch.float32)}
        self.lora_A = nn.Parameter(torch.empty(cfg.rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, cfg.rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_magnitude: nn.Parameter | None = None
        if cfg.use_dora:
            self.lora_magnitude = nn.Parameter(base.weight.detach().to(like["dtype"]).norm(dim=1))
        self.beside = nn.ModuleDict({name: Pair(self) for name in cfg.beside})
        self.used = ""
        self.borrowed: Update | None = None

    def _update(self) -> Update:
        if self.borrowed is not None:
            return self.borrowed
        pair = self.beside[self.used] if self.used else self
        return pair.lora_A, pair.lora_B, self.cfg.scale  # pyright: ignore[reportReturnType]  # parameters of either

    def forward(self, input: Tensor) -> Tensor:  # nn.Linear's name for it
        x = input
        if not self.active:
            return F.linear(x, self.weight, self.bias)
        first, second, scale = self._update()
        # Scaled while it is thin: the wide product is an output's size in memory, there and back.
        thin = F.linear(F.dropout(x, self.cfg.dropout, self.training), first.to(x.dtype)) * scale
        update = F.linear(thin, second.to(x.dtype))
        if self.lora_magnitude is None:
            return F.linear(x, self.weight, self.bias) + update
        # The norm counts as a constant in the backward pass (DoRA, section 4.3).
        length = self._sum().detach().norm(dim=1)
        out = (self.lora_magnitude / length).to(x.dtype) * (F.linear(x, self.weight) + update)
        return out if self.bias is None else out + self.bias

    def merged(self) -> Tensor:
        """The one weight that computes the same without an adapter, in the base's dtype."""
        whole = self._sum()
        if self.lora_magnitude is not None:
            whole = whole * (self.lora_magnitude / whole.norm(dim=1))[:, None]
        return whole.to(self.weight.dtype)

    def _sum(self) -> Tensor:
        return self.weight.to(self.lora_A.dtype) + self.cfg.scale * (self.lora_B @ self.lora_A)


def apply(module: nn.Module, cfg: Lora) -> list[str]:
    """Gives the targets inside `module` an adapter that adds nothing yet; everything else in `module` is frozen.

    Returns the names of the layers.

    Raises:
        ConfigError: a target that names no linear layer, or an adapter that is there already.
    """
    if any(isinstance(m, LoraLinear) for m in module.modules()):
        raise ConfigError("this part has an adapter already; merge it first")
    linear = {name: m for name, m in module.named_modules() if type(m) is nn.Linear}
    leaves = {name.rpartition(".")[2] for name in linear}
    for target in cfg.targets:
        if target != ALL_LINEAR and not any(n == target or n.endswith(f".{target}") for n in linear):
            raise ConfigError(f"lora target {target!r} is no linear layer here{nearest(target, leaves)}")
    chosen = {name: m for name, m in linear.items() if name and cfg.matches(name)}
    if not chosen:
        raise ConfigError("lora targets match no linear layer inside this part")
    module.requires_grad_(requires_grad=False)
    for name, base in chosen.items():
        module.set_submodule(name, LoraLinear(base, cfg))
    return list(chosen)


def lora_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What an adapter adds, by name."""
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2].startswith("lora_"):
            yield name, parameter


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Folds every adapter inside `module` into its weight and removes it; the weights stay frozen."""
    for name, layer in _adapted(module).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(layer.merged(), requires_grad=False), layer.bias
        module.set_submodule(name, plain)


@contextmanager
def disabled(module: nn.Module) -> Iterator[None]:
    """Inside, `module` computes as it did before `apply`: the reference model of preference alignment, for free.

    Backward passes belong inside as well if activations are recomputed.
    """
    with _set([layer for layer in _adapted(module).values() if layer.active], active=False):
        yield


@contextmanager
def using(module: nn.Module, name: str) -> Iterator[None]:
    """Inside, the adapters of that name beside the first ones compute (`Lora.beside`); they are the ones that learn."""
    with _set([layer for layer in _adapted(module).values() if name in layer.beside], used=name):
        yield


def has(module: nn.Module, name: str) -> bool:
    """Whether there are adapters of that name beside the first ones."""
    return any(name in layer.beside for layer in _adapted(module).values())


@contextmanager
def borrowed(module: nn.Module, adapters: Mapping[str, Tensor], cfg: Lora) -> Iterator[None]:
    """Inside, the adapters of another run over the same weights compute, of which nothing learns.

    `adapters` has `LAYER.lora_A` and `LAYER.lora_B` for every layer that is adapted here.

    Raises:
        CheckpointError: they are of other layers.
    """
    layers = _adapted(module)
    if {name.rpartition(".")[0] for name in adapters} != layers.keys() or cfg.use_dora:
        raise CheckpointError("the adapters are of other layers than those here, or not plain LoRA")
    for name, layer in layers.items():
        like = layer.lora_A
        first, second = (adapters[f"{name}.{part}"].to(like.device, like.dtype) for part in ("lora_A", "lora_B"))
        layer.borrowed = (first, second, cfg.scale)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.borrowed = None


@contextmanager
def _set(layers: Sequence[LoraLinear], **values: Any) -> Iterator[None]:
    before = [{name: getattr(layer, name) for name in values} for layer in layers]
    for layer in layers:
        layer.__dict__.update(values)
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.__dict__.update(was)


def same_name(name: str) -> str:
    """The renaming for models whose layers have transformers' names already."""
    return name


def save(
    module: nn.Module, folder: Path, *, rename: Callable[[str], str] = same_name, source: str | None = None
) -> None:
    """Writes the adapter in peft's format.

    `rename` maps a weight's name to that of the transformers model (`quintet.components.llms.weights.hf_name` for our
    decoder); `source` is the base model's hub name.
    """
    layers = _adapted(module)
    if not layers:
        raise CheckpointError("there is no adapter to save")
    cfg = next(iter(layers.values())).cfg
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        there = _layer_name(name, rename)
        state[f"{there}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        state[f"{there}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
        if layer.lora_magnitude is not None:
            state[f"{there}.lora_magnitude_vector"] = layer.lora_magnitude.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": source,
        "r": cfg.rank,
        "lora_alpha": cfg.alpha,
        "lora_dropout": cfg.dropout,
        "target_modules": sorted(_layer_name(name, rename).removeprefix(_PREFIX) for name in layers),
        "bias": "none",
        "use_dora": cfg.use_dora,
        "use_rslora": cfg.rslora,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def load(module: nn.Module, folder: Path, *, rename: Callable[[str], str] = same_name) -> Lora:
    """Applies the adapter that a folder in peft's format holds; `rename` as in `save`. Returns its settings.

    Raises:
        CheckpointError: not a LoRA of ours, or tensors that do not fit the layers; the message names them.
    """
    path = folder / "adapter_config.json"
    if not path.is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds no adapter_config.json with an adapter_model.safetensors beside it")
    found: dict[str, Any] = json.loads(path.read_text())
    unknown = [name for name in _REFUSED if found.get(name)]
    if found.get("peft_type") != "LORA" or found.get("bias", "none") != "none" or unknown:
        raise CheckpointError(
            f"{path}: only plain LoRA loads here (peft_type {found.get('peft_type')!r}, bias {found.get('bias')!r},"
            f" also set: {', '.join(unknown) or 'nothing'}); merge it with peft and import the merged model"
        )
    state = load_file(folder / "adapter_model.safetensors")
    inside = {_layer_name(name, rename): name for name, m in module.named_modules() if type(m) is nn.Linear}
    # The file's tensors say which layers have an adapter; peft's `target_modules` may be a pattern.
    layers = {name.rsplit(".lora_", 1)[0] for name in state}
    if layers - inside.keys():
        raise CheckpointError(f"{path}: no such layers here: {', '.join(sorted(layers - inside.keys())[:5])}")
    cfg = Lora(
        rank=found["r"],
        alpha=float(found["lora_alpha"]),
        dropout=float(found.get("lora_dropout", 0.0)),
        targets=tuple(sorted(inside[name] for name in layers)),
        use_dora=bool(found.get("use_dora", False)),
        rslora=bool(found.get("use_rslora", False)),
    )
    apply(module, cfg)
    for name, layer in _adapted(module).items():
        there = _layer_name(name, rename)
        _fill(layer.lora_A, state, f"{there}.lora_A.weight")
        _fill(layer.lora_B, state, f"{there}.lora_B.weight")
        if layer.lora_magnitude is not None:
            _fill(layer.lora_magnitude, state, f"{there}.lora_magnitude_vector")
    if state:
        raise CheckpointError(f"{path}: tensors that belong nowhere: {', '.join(sorted(state)[:5])}")
    return cfg


def _fill(parameter: Tensor, state: dict[str, Tensor], name: str) -> None:
    value = state.pop(name, None)
    if value is None or value.shape != parameter.shape:
        shape = "missing" if value is None else tuple(value.shape)
        raise CheckpointError(f"{name} is {shape}; expected {tuple(parameter.shape)}")
    parameter.copy_(value)


def _adapted(module: nn.Module) -> dict[str, LoraLinear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, LoraLinear)}


def _layer_name(name: str, rename: Callable[[str], str]) -> str:
    return _PREFIX + rename(f"{name}.weight").removesuffix(".weight")
