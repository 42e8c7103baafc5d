"""What an answer of the model's own is worth, for the stages that learn from that.

exact     1 where it is the true answer of its row, else 0 (GRPO on questions whose answers are known)
truth     on Scenes' pictures: the share of what is there that it names, less what it makes up, claim by claim
RUN       the score of a reward model of ours, whose folder is named
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from quintet import dist
from quintet.answers import Answer
from quintet.components import lora
from quintet.components.lora import Lora
from quintet.data.processor import Processor
from quintet.data.scenes import Scene, read_truth
from quintet.data.scenes.claims import claims, severity, truths
from quintet.errors import CheckpointError, ConfigError, DataError, nearest
from quintet.evaluation.metrics.exact import ExactMatch
from quintet.lab.align import KNOWN_REWARDS, Start
from quintet.lab.facts import Request, known_facts
from quintet.model.checkpoint import TRAINED, read_json
from quintet.model.mllm import MLLM
from quintet.serving.engine import Engine
from quintet.training.folder import RunFolder
from quintet.training.objectives.policy import VALUE
from quintet.training.objectives.reward import Reward
from quintet.training.rolling import RewardOf
from quintet.training.stage import Rate, Stage
from quintet.values import Batch, Node, Sample, Text, Turn

__all__ = ["Base", "Worth", "reward_of", "value_of", "worth"]

BATCH = 32


@dataclass(frozen=True)
class Base:
    """The model that learns, of a run, to which a reward model over the same weights lends its adapters."""

    model: MLLM
    processor: Processor
    run: Path
    stage: Stage


@dataclass(frozen=True)
class Worth:
    """What a stage's own answers are worth, and the weights that its value model begins as."""

    of: RewardOf
    value: Mapping[str, Tensor]


def reward_of(name: str, *, scenes: Path, facts: Path | None = None, base: Base | None = None) -> RewardOf:
    """A reward by its name; `facts` are what a reward model is told of pictures that are not Scenes'.

    A reward model that is adapters over `base` is not loaded beside it: its adapters compute in place of the others.

    Raises:
        ConfigError: there is none of that name.
        CheckpointError: the folder holds no reward model.
    """
    if name == "exact":
        return _exact
    if name == "truth":
        known = _scenes(scenes)
        return lambda samples, answers: [
            [worth(each, known(sample)) for each in said] for sample, said in zip(samples, answers, strict=True)
        ]
    if not Path(name).is_dir():
        raise ConfigError(f"no reward {name!r}{nearest(name, KNOWN_REWARDS)}, or the run of a reward model")
    learnt = _learnt(Path(name))
    request = Request(learnt.asked, known_facts(facts, scenes=scenes) if learnt.facts else None)
    if base is not None and (lent := _lent(Path(name), base)):
        return _rewards(base.processor, lent.scores(base.model), request)
    engine = Engine.open(Path(name))
    if engine.model.score is None:
        raise CheckpointError(f"{name} is no reward model, it has no score head; `quintet align reward` makes one")

    def scores(batch: Batch) -> Tensor:
        assert batch.answers is not None
        with engine.model.inference():
            moved = batch.to(engine.device)
            return engine.model.scores(engine.model(moved).hidden.flatten(0, 1)[batch.answers.last])

    return _rewards(engine.processor, scores, request)


def value_of(name: str, base: Base | None) -> dict[str, Tensor]:
    """What a value model with adapters of its own begins as, by name: the reward model, adapters and head.

    Empty where the reward is no model, or not adapters of the same rank over the base. The paper's value model starts
    from the reward model; its release takes the adapters alone and sets the head to 0 (`rl_models.py`, `Value`).
    """
    lent = _lent(Path(name), base) if base and Path(name).is_dir() else None
    own = base.stage.train["llm"].lora if lent and base else None
    if lent is None or own is None or VALUE not in own.beside or own.rank != lent.how.rank:
        return {}
    begun = {f"score.{part}": tensor for part, tensor in lent.head.items()}
    for key, tensor in lent.adapters.items():
        layer, _, part = key.rpartition(".")
        begun[f"{layer}.beside.{VALUE}.{part}"] = tensor * (lent.how.scale / own.scale if part == "lora_B" else 1.0)
    return begun


@dataclass(frozen=True)
class Lent:
    """A reward model that is adapters and a head over another model's weights."""

    adapters: dict[str, Tensor]
    how: Lora
    head: dict[str, Tensor]

    def scores(self, model: MLLM) -> Callable[[Batch], Tensor]:
        """What reads rewards off that model, whose adapters compute as these meanwhile."""

        def scores(batch: Batch) -> Tensor:
            assert batch.answers is not None
            with model.inference(), lora.borrowed(model, self.adapters, self.how):
                hidden = model(batch.to(dist.device())).hidden.flatten(0, 1)[batch.answers.last]
            weight, bias = (self.head[name].to(hidden) for name in ("weight", "bias"))
            return F.linear(hidden, weight, bias).float().squeeze(-1)

        return scores


def _lent(run: Path, base: Base) -> Lent | None:
    """A run's reward model as adapters over the base; None where the run is more than these."""
    found = read_json(run / "recipe.json") if (run / "recipe.json").exists() else {}
    begun, stages = found.get("from", {}), found.get("recipe", {}).get("stages", [])
    parts = {"llm", "score"}
    if not begun or len(stages) != 1 or set(stages[0]["train"]) != parts or set(base.stage.train) != parts:
        return None
    same = {"path": str(Path(begun["path"]).resolve()), "files": begun["files"]}
    here = Start(base.run).identity()
    lends, learns = (Rate.from_json(stages[0]["train"]["llm"]).lora, base.stage.train["llm"].lora)
    plain = lends is not None and learns is not None and lends.targets == learns.targets and not lends.use_dora
    if same != here | {"path": str(base.run.resolve())} or not plain:
        return None
    assert lends is not None
    tensors = load_file(RunFolder(run).stage(stages[0]["name"]) / TRAINED)
    head = {name.removeprefix("score."): tensors.pop(name) for name in list(tensors) if name.startswith("score.")}
    return Lent(tensors, lends, head)


def _learnt(run: Path) -> Reward:
    """How a reward model learnt; one of before there was a request says of none, and is asked none."""
    place = run / "recipe.json"
    stages = read_json(place)["recipe"]["stages"] if place.exists() else []
    return next((Reward.from_json(stage["reward"]) for stage in stages if stage.get("reward")), Reward())


def _exact(samples: Sequence[Sample], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    metric, made = ExactMatch(), []
    for sample, said in zip(samples, answers, strict=True):
        truth = "".join(part.text for part in sample.root.turns[-1].parts if isinstance(part, Text))
        made.append(metric.judge(list(said), [truth] * len(said)).sums[:, 0].tolist())
    return made


def worth(answer: str, scene: Scene) -> float:
    """`truth`: the share of what is there that is named, less a third of each claim's severity."""
    said = claims(answer)
    named = {(each.kind, each.what) for each in truths(scene)}
    found = len(named & {(each.kind, each.what) for each in said}) / len(named) if named else 1.0
    wrong = sum(severity(each, scene) for each in said) / 3
    return found - wrong


def _scenes(folder: Path) -> Callable[[Sample], Scene]:
    """The truth of a sample's picture."""
    known = {truth.image.stem: truth.scene for truth in read_truth(folder / "train.truth.jsonl")}

    def of(sample: Sample) -> Scene:
        name = Path(sample.media()[0].ref.name).stem if sample.media() else ""
        if name not in known:
            where = sample.origin
            raise DataError("no-truth", f"no truth is known of the picture {name!r}", file=where.file, row=where.row)
        return known[name]

    return of


def _rewards(processor: Processor, scores: Callable[[Batch], Tensor], request: Request) -> RewardOf:
    """A reward model's numbers; it is asked and told what it was when it learnt."""

    def rewards(samples: Sequence[Sample], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = []
        for sample, said in zip(samples, answers, strict=True):
            for each in said:
                behind = request.behind(sample, each or " ")
                turns = (*sample.root.turns[:-1], Turn("assistant", (Text(each or " "),)), *behind)
                asked.append(Sample(Node(turns, answer=Answer(0.0)), sample.origin))
        found: list[float] = []
        for start in range(0, len(asked), BATCH):
            found += scores(processor.batch(asked[start : start + BATCH])).tolist()
        counts, each = [len(said) for said in answers], iter(found)
        return [[next(each) for _ in range(count)] for count in counts]

    return rewards
