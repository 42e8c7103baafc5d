"""Which samples make which step of a stage, for the loop and for the passes that look ahead of it."""

from quintet import dist
from quintet.data.pipeline import Plan, Planner, Source, measure_with
from quintet.data.references import References
from quintet.data.tokenizer import Tokenizer
from quintet.model.mllm import MLLM
from quintet.training.stage import Stage

__all__ = ["planner"]


def planner(
    model: MLLM,
    stage: Stage,
    source: Source,
    tokenizer: Tokenizer,
    *,
    seed: int,
    references: References | None = None,
) -> Planner:
    """The planner of a stage on this rank."""
    how = stage.preference or (stage.reward if stage.objective == "reward" else None)
    plan = Plan(
        batch=stage.batch,
        steps=stage.num_steps(len(source)),
        row=stage.row,
        micro=stage.micro,
        seed=seed,
        packing=stage.packing,
        rank=dist.rank(),
        world=dist.world(),
        too_long=stage.too_long,
        completion=stage.completion,
        contrast=stage.contrast,
        differences=stage.differences,
        check=how.check if how else None,
    )
    specs = {kind: model.config.spec(kind) for kind in model.config.encoders}
    measure = measure_with(specs, model.config.columns)
    return Planner(source, stage.template, tokenizer, measure, plan, references)
