"""What an alignment method is: stages laid over a tuned model. A module with `method(template) -> Method`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.lora import Lora
from quintet.config.base import Config
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.training.stage import Rate, Stage

__all__ = ["Method", "lora_on_llm"]


@dataclass(frozen=True, kw_only=True)
class Method(Config):
    """A way to align a model that is tuned already."""

    stages: tuple[Stage, ...]
    """In the template of the model, which is talked to as before."""
    asks: str = ""
    """What the model that it makes is asked with, behind every question of a user: part of its template from then on,
    so that chat, measurements and what it learns next spell it alike."""
    paper: Paper

    def over(self, model: MLLM.Config, template: Template) -> Recipe:
        """The model trained on by this method, as a recipe. A model without connectors has none that learns.

        Raises:
            ConfigError: a reward model on an encoder–decoder.
        """
        stages = self.stages
        if isinstance(model.llm, HFSeq2Seq.Config) and any(stage.objective == "reward" for stage in stages):
            raise ConfigError(
                "a reward model reads the last token of an answer, and an encoder–decoder has no state there; take a "
                "decoder as LLM, or a reward that needs no model (truth, exact)"
            )
        if any("score" in stage.train for stage in stages):
            model = replace(model, score=True)
        if not model.connectors:
            kept = ({part: rate for part, rate in each.train.items() if part != "connectors"} for each in stages)
            stages = tuple(replace(each, train=train) for each, train in zip(stages, kept, strict=True))
        if not self.asks:
            return Recipe(model=model, stages=stages, chat=template, paper=self.paper)
        # A model that was made so before is asked so already: rows bring conditions of their own, so stages do without.
        after = template.user.after.removeprefix(self.asks)
        plain, asking = (
            replace(template, user=replace(template.user, after=each)) for each in (after, self.asks + after)
        )
        stages = tuple(replace(stage, template=plain) for stage in stages)
        return Recipe(model=model, stages=stages, chat=asking, paper=self.paper)


def lora_on_llm(lr: float, *, rank: int, alpha: float, beside: tuple[str, ...] = ()) -> Mapping[str, Rate]:
    """Adapters on every linear layer of the LLM, others beside them by name; everything else frozen."""
    return {"llm": Rate(lr=lr, lora=Lora(rank=rank, alpha=alpha, beside=beside))}
