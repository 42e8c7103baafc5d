"""Methods that learn from the model's own answers, trained at tiny scale on pairs of their own builders. About 15 s.

A tiny model says nothing; its answers are told here, and everything behind them is what `quintet align` does.
"""

from pathlib import Path

import pytest
import torch
import tuned_fixtures
from safetensors.torch import load_file
from test_pairs import Scripted

from quintet.data.processor import Processor
from quintet.data.scenes import read_truth
from quintet.data.sources.preference_scores import PRAISE, condition
from quintet.lab.align import Start
from quintet.lab.run import Job, train
from quintet.serving.engine import Engine
from quintet.training.folder import Metrics, RunFolder
from quintet.values import Node, Sample, Text, Turn

BEST = condition(4, PRAISE)


scenes, run = tuned_fixtures.scenes, tuned_fixtures.run


@pytest.mark.parametrize("method", ["stic", "rlaif_v", "bpo", "dress"])
def test_a_method_learns_from_pairs_of_its_own(
    method: str, scenes: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = Scripted(read_truth(scenes / "train.truth.jsonl"))
    monkeypatch.setattr(
        Engine, "sampled", lambda self, samples, *, sampling: scripted.sampled(samples, sampling=sampling)
    )
    start, out = Start(run), tmp_path / "out"
    recipe = start.aligned(method)
    steps = [f"stages.{stage.name}.steps=2" for stage in recipe.stages]
    train(Job(recipe=method, scale="tiny", out=out, scenes=scenes, start=start, sets=steps))
    for stage in recipe.stages:
        assert (out / "pairs" / f"{stage.name}.jsonl").stat().st_size > 0
        rows = [row for row in Metrics.read(RunFolder(out).metrics) if row["stage"] == stage.name]
        assert len(rows) == 2
        if stage.objective == "preference":
            # Before the first step the model is its own reference: each sigmoid is ln 2; one term is the loss.
            assert rows[0].get("sigmoid", rows[0]["loss"]) == pytest.approx(0.6931, abs=2e-3)
    changed = {
        path.stem.partition(".")[0]
        for path in (out / "model").glob("*.safetensors")
        if any(not torch.equal(value, load_file(run / "model" / path.name)[name])
               for name, value in load_file(path).items())
    }  # fmt: skip
    assert changed == {part for stage in recipe.stages for part in stage.train}


def test_a_model_of_dress_is_asked_for_the_best_wherever_it_is_asked(run: Path) -> None:
    """Its template says so; what follows learns in it, and DRESS once more does not say it twice."""
    start = Start(run)
    recipe = start.aligned("dress")
    made = Processor(start.processor().tokenizer, recipe.template, recipe.model)
    question = Sample(Node((Turn("user", (Text("What is here?"),)),)))
    asked = made.text(made.tokens(question, open=True).ids.tolist())
    assert f"What is here?{BEST}" in asked
    assert BEST not in made.text(start.processor().tokens(question, open=True).ids.tolist())
    for stage in recipe.stages:
        assert BEST not in stage.template.user.after, "rows bring their own conditions"


def test_dress_twice_asks_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(run)
    recipe, plain = start.aligned("dress"), start.processor()
    asking = Processor(plain.tokenizer, recipe.template, plain.model)
    monkeypatch.setattr(Start, "processor", lambda self: asking)
    again = start.aligned("dress")
    assert again.template == recipe.template
    assert again.stages[0].template == recipe.stages[0].template == plain.template
    # Any other method goes on in what the model is asked in.
    assert all(stage.template == recipe.template for stage in start.aligned("dpo").stages)
