"""Which recipe's release is read by which table."""

from collections.abc import Callable, Mapping

from quintet.errors import ConfigError, nearest
from quintet.model.mllm import MLLM
from quintet.model.released import (
    cogvlm,
    lavin,
    llama_adapter,
    llava,
    minigpt,
    moe_llava,
    mplug_owl,
    open_flamingo,
    qwen_vl,
)
from quintet.model.released.table import Layout

__all__ = ["LAYOUTS", "layout_of"]

LAYOUTS: Mapping[str, Callable[[MLLM.Config], Layout]] = {
    "cogvlm": cogvlm.layout,
    "ferret": llava.ferret,
    "lavin": lavin.layout,
    "llama_adapter": llama_adapter.layout,
    "llava": llava.llava,
    "llava15": llava.llava,
    "minigpt4": minigpt.minigpt4,
    "minigpt_v2": minigpt.minigpt_v2,
    "mobilevlm_v2": llava.mobilevlm,
    "moe_llava": moe_llava.layout,
    "mplug_owl": mplug_owl.layout,
    "open_flamingo": open_flamingo.layout,
    "qwen_vl": qwen_vl.layout,
    "sharegpt4v": llava.sharegpt4v,
    "shikra": llava.llava,
    "vila": llava.vila,
}
"""Recipe → its release."""


def layout_of(recipe: str, model: MLLM.Config) -> Layout:
    """The layout of a recipe's release.

    Raises:
        ConfigError: there is no table for it.
    """
    if recipe not in LAYOUTS:
        raise ConfigError(f"no table of names for a release of {recipe!r}{nearest(recipe, LAYOUTS)}")
    return LAYOUTS[recipe](model)
