"""What an alignment method is: stages laid over the recipe of a tuned model. A module with `method(base) -> Method`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quintet.components.lora import Lora
from quintet.config.base import Config
from quintet.recipes._recipe import Paper, Recipe
from quintet.training.stage import Rate, Stage

__all__ = ["Method", "lora_on_llm"]


@dataclass(frozen=True, kw_only=True)
class Method(Config):
    """A way to align a model that is tuned already."""

    stages: tuple[Stage, ...]
    """Templates are the base's: an aligned model is talked to as before."""
    paper: Paper

    def over(self, base: Recipe) -> Recipe:
        """The base's model, trained on by this method's stages."""
        return replace(base, stages=self.stages, before=(), chat=base.template, paper=self.paper)


def lora_on_llm(lr: float, *, rank: int, alpha: float, dropout: float = 0.0) -> Mapping[str, Rate]:
    """Adapters on every linear layer of the LLM, everything else frozen."""
    return {"llm": Rate(lr=lr, lora=Lora(rank=rank, alpha=alpha, dropout=dropout))}
