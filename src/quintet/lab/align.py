"""Aligning a tuned model: `quintet align METHOD --from RUN`, and what its stages learn from where no file is named."""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quintet.answers import Answer
from quintet.data.contrast import KEPT
from quintet.data.pipeline import Source as Rows
from quintet.data.processor import Processor
from quintet.data.sources import Source, open_source
from quintet.data.template import Template
from quintet.errors import CheckpointError, ConfigError, DataError, nearest
from quintet.lab.pairs import BUILDERS, JUDGED, Work, build, unheld, unread
from quintet.model.checkpoint import ends_digest, load_model, read_json
from quintet.model.mllm import MLLM
from quintet.pace import Pace
from quintet.recipes import align
from quintet.recipes._method import Method
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import aligned_at_scale
from quintet.training.stage import Stage

__all__ = [
    "ANY",
    "KNOWN_REWARDS",
    "Start",
    "count_of",
    "load_method",
    "look_at_preferences",
    "method_names",
    "own_rows",
    "pairs_of",
]

ROWS = {"full": 10_000, "starter": 2_000, "tiny": 32}
"""Rows that a stage makes for itself, by scale."""

KNOWN_REWARDS = ("exact", "truth")
"""What answers can be worth without a reward model."""

LOOKED = 50
"""Rows that are looked at before a stage begins."""

ANY = Template(name="any", end="")
"""In which a method is told of without a model."""


def method_names() -> list[str]:
    """The methods of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(align.__path__) if not m.name.startswith("_"))


def load_method(name: str, processor: Processor) -> Method:
    """A method of the package by its name, in a model's template.

    Raises:
        ConfigError: there is none.
    """
    if name not in method_names():
        raise ConfigError(f"no method {name!r}{nearest(name, method_names())}")
    return importlib.import_module(f"quintet.recipes.align.{name}").method(processor.template)


def pairs_of(name: str) -> str:
    """How a method's first stage makes its pairs."""
    made = importlib.import_module(f"quintet.recipes.align.{name}").method(ANY)
    return str(made.stages[0].data.pairs)


@dataclass(frozen=True)
class Start:
    """The run that an alignment goes on from."""

    run: Path

    @property
    def model(self) -> Path:
        """Its model's folder.

        Raises:
            CheckpointError: there is none.
        """
        place = self.run / "model" if (self.run / "model").is_dir() else self.run
        if not (place / "config.json").is_file():
            raise CheckpointError(f"{self.run} holds no finished model to go on from")
        return place

    @property
    def facts(self) -> dict[str, Any]:
        """Its recipe.json; empty where the model was imported."""
        return read_json(self.run / "recipe.json") if (self.run / "recipe.json").exists() else {}

    @property
    def scale(self) -> str:
        return str(self.facts.get("scale", "full"))

    def config(self) -> MLLM.Config:
        """The model as it was built."""
        return MLLM.Config.from_json(read_json(self.model / "config.json")["model"])

    def processor(self) -> Processor:
        """How it is talked to."""
        return Processor.load(self.model, self.config())

    def load(self) -> MLLM:
        """The model, in float32."""
        return load_model(self.model).float()

    def aligned(self, method: str) -> Recipe:
        """The model trained on by a method, at the run's scale."""
        if self.facts.get("name") == "reward":
            raise ConfigError(f"{self.run} is a reward model and does not talk; align the run that it began from")
        processor = self.processor()
        return aligned_at_scale(load_method(method, processor).over(processor.model, processor.template), self.scale)

    def identity(self) -> dict[str, str]:
        """What tells it from another start: where it is, and what its files are (`ends_digest`)."""
        files = {path.name: ends_digest(path) for path in sorted(self.model.glob("*.safetensors"))}
        return {"path": str(self.run.resolve()), "files": repr(files)}


def count_of(stage: Stage, scale: str) -> int:
    """How many rows a stage makes for itself."""
    return ROWS[scale] if stage.steps is None else min(ROWS[scale], stage.steps * stage.batch)


def own_rows(stage: Stage, work: Work, *, out: Path, note: Callable[[str], None] = lambda text: None) -> Source:
    """What a stage without a file learns from: pairs of Scenes, made now with the model as it is, kept in `out`.

    Raises:
        ConfigError: the stage does not say how its pairs are made.
    """
    if not stage.data.pairs:
        raise ConfigError(
            f"stage {stage.name!r} learns from {stage.data.name}; name its file: --data {stage.name}=PATH"
        )
    if not out.exists():
        note(f"making pairs for stage {stage.name!r} ({stage.data.pairs})")
        before = work.judge.unread
        work = replace(work, progress=Pace(note, "pairs"), unheld=[])
        made = build(stage.data.pairs, work, out)
        note(f"{made:,} rows in {out}{unread(work.judge, before)}{unheld(work)}")
    return open_source(out, root=work.scenes)


def look_at_preferences(
    recipe: Recipe,
    sources: Mapping[str, Rows],
    *,
    files: Mapping[str, Path],
    reward: str,
    facts: Path | None = None,
    judge: str = "truth",
) -> None:
    """Whether stages have what they compare, before anything long.

    Raises:
        ConfigError: a file without compared answers, a reward that is missing or none, one that no stage asks for, or
            a judge whom none asks.
        DataError: no row of the first ones can be read.
    """
    judges = any(stage.reward and stage.reward.facts for stage in recipe.stages)
    if facts is not None and not judges and not (reward and Path(reward).is_dir()):
        raise ConfigError("--facts are told to reward models: quintet align reward, or --reward RUN of one")
    if judge != "truth" and not any(s.data.pairs in JUDGED and s.name not in sources for s in recipe.stages):
        made = ", ".join(s.data.pairs or "nothing" for s in recipe.stages)
        raise ConfigError(
            f"--judge is for pairs of the model's own answers ({', '.join(JUDGED)}), and no stage makes such: {made}. "
            "A file that --data names was judged already; `quintet data pairs` makes one with any judge"
        )
    _look_at_rewards(recipe, sources, reward)
    for stage in recipe.stages:
        if stage.data.pairs and stage.data.pairs not in BUILDERS:
            raise ConfigError(f"no pairs {stage.data.pairs!r}{nearest(stage.data.pairs, BUILDERS)}")
        source = sources.get(stage.name)
        if source is not None and stage.objective in ("preference", "reward") and not _compares(source):
            raise ConfigError(
                f"stage {stage.name!r} compares answers, and the first rows of {_named(files, stage)} have none to "
                "compare: no chosen and rejected, no scores. docs/alignment.md says which files are read, "
                "`quintet data check FILE` what it is taken for"
            )
        if source is not None and stage.preference and "kl" in stage.preference.terms and not _first(source, _kept):
            rest = json.dumps({term: weight for term, weight in stage.preference.terms.items() if term != "kl"})
            raise ConfigError(
                f"stage {stage.name!r} keeps conversations as they are (`kl`), and the first {LOOKED} rows of "
                f"{_named(files, stage)} have none: write some into rows under the key `kept`, turns as in "
                f"`conversations`, or leave the term out: --set 'stages.{stage.name}.preference.terms={rest}'"
            )


def _look_at_rewards(recipe: Recipe, sources: Mapping[str, Rows], reward: str) -> None:
    drawn = [stage for stage in recipe.stages if stage.rollouts]
    if reward and not drawn:
        raise ConfigError("--reward is for methods that learn from answers of their own: grpo, llava_rlhf")
    for stage in drawn:
        if stage.rollouts and not (reward or stage.rollouts.reward):
            raise ConfigError(
                f"stage {stage.name!r} draws answers, and nothing says what they are worth; name a reward: "
                "--reward RUN, of a model that `quintet align reward` made, or --reward truth on Scenes"
            )
        if reward == "truth" and stage.data.pairs == "questions" and stage.name not in sources:
            raise ConfigError(
                "--reward truth counts what a description names, and questions ask for a word; take exact"
            )
        if reward == "exact" and stage.data.pairs == "descriptions" and stage.name not in sources:
            raise ConfigError("--reward exact compares with one right answer, and a description has many; take truth")
    if reward and reward not in KNOWN_REWARDS and not Path(reward).is_dir():
        raise ConfigError(f"no reward {reward!r}{nearest(reward, KNOWN_REWARDS)}, or the run of a reward model")
    if reward and Path(reward).is_dir() and not (Start(Path(reward)).model / "score.safetensors").is_file():
        raise ConfigError(f"{reward} is no reward model, it has no score head; `quintet align reward` makes one")


def _named(files: Mapping[str, Path], stage: Stage) -> str:
    return str(files.get(stage.name) or files.get("") or "its file")


def _compares(source: Rows) -> bool:
    """Whether one of the first rows that can be read has answers that are compared."""
    # An answer without a score is a prompt's own, as LLaVA-RLHF's prompts have it: nothing to compare.
    return _first(source, lambda answer: answer.score is not None)


def _kept(answer: Answer) -> bool:
    return answer.name == KEPT


def _first(source: Rows, wanted: Callable[[Answer], bool]) -> bool:
    """Whether one of the first rows that can be read has such an answer.

    Raises:
        DataError: none can be read.
    """
    faults: list[DataError] = []
    looked = min(LOOKED, len(source))
    for index in range(looked):
        try:
            sample = source.sample(index)
        except DataError as error:
            faults.append(error)
            continue
        nodes = (node for tree in (sample.root, *sample.others) for node in tree.walk())
        if any(node.answer is not None and wanted(node.answer) for node in nodes):
            return True
    if looked and len(faults) == looked:
        first = faults[0]
        message = f"{first.message}; all of the first {looked} rows are faulty, see `quintet data check`"
        raise DataError(first.fault, message, file=first.file, row=first.row, field=first.field)
    return False
