"""LaVIN's names: the adapters that its training loop saves, `checkpoint-N.pth`.

Source: luogen1996/LaVIN at dd0a1bf: `util/misc.py` (every parameter with `adapter` in its name, under `model`),
`lavin/mm_adapter.py`, `lavin/model.py`. Its tower's adapters are routed token by token: their code takes x[:, 0] of
what stands length first, so with one picture each token says how its own ways are mixed.
"""

from dataclasses import replace

import torch

from quintet.components.encoders.adapted import Adapted
from quintet.model.mllm import MLLM
from quintet.model.released.common import LLM
from quintet.model.released.table import Layout, Rule, Way, stack

__all__ = ["layout"]


def layout(model: MLLM.Config) -> Layout:
    """The table. The two ways up of an adapter are a tensor each there and one here."""
    encoder = model.encoders["image"]
    assert isinstance(encoder, Adapted.Config)
    adapters = {
        "layers": "fusion.adapters",
        "backbone.visual.transformer.resblocks": "encoders.image.adapters",
    }
    return Layout(
        replace(model, encoders={"image": replace(encoder, routed_by="each")}),
        (
            Rule("adapter_modality_embedding.weight", "fusion.tokens"),
            Rule("adapter_proj.conv_A.**", "connectors.image.down_proj.**"),
            Rule("adapter_proj.conv_B.**", "connectors.image.up_proj.**"),
            *(rule for theirs, ours in adapters.items() for rule in _adapter(theirs, ours, groups=encoder.groups)),
        ),
        elsewhere=("encoders.image.tower.**", LLM),
    )


def _adapter(theirs: str, ours: str, *, groups: int) -> tuple[Rule, ...]:
    theirs, ours = f"{theirs}.*.adapter_attn", f"{ours}.*"
    return (
        Rule(f"{theirs}.conv_A.**", f"{ours}.down_proj.**"),
        Rule((f"{theirs}.conv_B.weight", f"{theirs}.conv_D.weight"), f"{ours}.up_weight", _ways(groups)),
        Rule((f"{theirs}.conv_B.bias", f"{theirs}.conv_D.bias"), f"{ours}.up_bias", stack),
        Rule(f"{theirs}.expert_weights.**", f"{ours}.router.**"),
    )


def _ways(groups: int) -> Way:
    """A tensor a way there, its groups one below the other; here ways and groups are dimensions."""
    return Way(
        lambda theirs: (torch.stack(theirs).unflatten(1, (groups, -1)),),
        lambda ours: ours[0].flatten(1, 2).unbind(),
    )
