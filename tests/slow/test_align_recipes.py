"""Every recipe that answers is aligned, on trees of two pictures and on answers of its own, and becomes a judge.

What the first finds of a recipe: a template, a fusion or a connector that two trees in a row do not fit, pictures told
in words whose words do not change. What the second finds: prompts that cannot be sampled from, weights whose reference
cannot be kept. About three minutes on one core.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from quintet.data.scenes import World, make_scenes
from quintet.errors import ConfigError
from quintet.evaluation.judge import Asked, TruthJudge
from quintet.lab.align import Start
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.lab.run import Job, train
from quintet.training.folder import Metrics, RunFolder


class Mends(TruthJudge):
    """Finds something wrong with what no tiny model could say right."""

    name = "mends"

    def grade(self, asked: Asked, said: Sequence[str]) -> list[int | None]:
        return [1 + hashlib.sha256(each.encode()).digest()[0] % 3 for each in said]

    def mend(self, asked: Asked, said: Sequence[str], grades: Sequence[int]) -> str:
        return "There is a small red circle."


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("every") / "scenes", 16, 0, World())


@pytest.mark.parametrize("name", recipe_names())
def test_it_is_aligned(name: str, scenes: Path, tmp_path: Path) -> None:
    stages = load_recipe(name)[1].stages
    once = [f"stages.{stage.name}.steps=1" for stage in stages]
    if name == "pali_x":  # its random weights write hardly anything but sentinels, which no row of text can hold
        once += ["stages.resolution.steps=20", "stages.resolution.train.llm.lr=0.01"]
    train(Job(recipe=name, scale="tiny", out=tmp_path / "run", scenes=scenes, sets=once))
    start = Start(tmp_path / "run")
    # Kosmos-2's random weights write tokens that no row of text can hold.
    own = "truth" if name == "kosmos2" else "corrected"
    for method, sets in (
        ("mdpo", ["stages.mdpo.steps=2", "stages.mdpo.data.pairs=truth"]),
        ("rlhf_v", ["stages.ddpo.steps=2", f"stages.ddpo.data.pairs={own}"]),
    ):
        train(Job(recipe=method, scale="tiny", out=tmp_path / method, scenes=scenes, start=start, sets=sets,
                  judge=Mends() if sets[1].endswith("corrected") else TruthJudge()))  # fmt: skip
        rows = Metrics.read(RunFolder(tmp_path / method).metrics)
        assert len(rows) == 2
        # Nothing is learnt before the first step: policy and reference are the same.
        assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-4)
        assert rows[0]["grad_norm"] > 0
    judges = Job(recipe="reward", scale="tiny", out=tmp_path / "reward", scenes=scenes, start=start,
                 sets=["stages.reward.steps=1", "stages.reward.data.pairs=truth"])  # fmt: skip
    if name == "pali_x":
        with pytest.raises(ConfigError, match="an encoder–decoder has no state there"):
            train(judges)
        return
    train(judges)
    [row] = Metrics.read(RunFolder(tmp_path / "reward").metrics)
    assert row["grad_norm"] > 0
