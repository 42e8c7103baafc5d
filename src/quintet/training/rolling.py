"""A stage's samples, drawn from the model as it is: prompts → answers → rewards → advantages → tokens to learn from.

    RUN/rollouts/STAGE-K.safetensors    the K-th iteration: the ids of every answer and what is known of each token
    RUN/rollouts/STAGE-K.json           its prompts' rows, rewards, what rules add to them, KL, the answers' words

An iteration is written whole before its first step and read back by a run that goes on, so a run that was killed makes
the same steps from the same answers. The n-th sample belongs to iteration n // (prompts · epochs). One process draws
and learns: sharded weights do not generate here, so a run of several is refused (`train_stage`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quintet import dist
from quintet.answers import Answer
from quintet.components import lora
from quintet.data.collate import collate
from quintet.data.pipeline import MediaLoader, Planner
from quintet.data.processor import Processor
from quintet.errors import DataError, TrainingError
from quintet.log import logger
from quintet.model.checkpoint import read_json, write_json
from quintet.model.generate import Sampling, generate, open_ends
from quintet.model.mllm import MLLM, Output
from quintet.training.hardware import autocast
from quintet.training.objectives import rewards
from quintet.training.objectives.policy import valued
from quintet.training.stage import Stage
from quintet.training.symbolic import symbolic
from quintet.values import Batch, Node, Sample, Tokens

__all__ = ["RewardOf", "Rolling", "continued"]

RewardOf = Callable[[Sequence[Sample], Sequence[Sequence[str]]], list[list[float]]]
"""Samples with their true answers, and the answers of each → a reward each."""

log = logger(__name__)

TOGETHER = 16
"""Prompts that are answered in one batch."""


@dataclass(frozen=True)
class Drawn:
    """One prompt with its answers."""

    tokens: Tokens
    rewards: tuple[float, ...]


class Rolling(Planner):
    """A planner whose samples are the model's own answers."""

    def __init__(
        self,
        base: Planner,
        model: MLLM,
        stage: Stage,
        *,
        folder: Path,
        reward: RewardOf,
        precision: Literal["fp32", "bf16"],
        processor: Processor,
    ) -> None:
        super().__init__(base.source, base.template, base.tokenizer, base.measure, base.plan)
        assert stage.rollouts is not None, "a stage of rollouts"
        self.model, self.stage, self.how = model, stage, stage.rollouts
        self.folder, self.reward = folder, reward
        self.precision: Literal["fp32", "bf16"] = precision
        self.stops, self.text = processor.stops(), processor.text
        specs = {kind: model.config.spec(kind) for kind in model.config.encoders}
        self.load = MediaLoader(specs)
        self.cost = rewards.AdaptiveKL(self.how.kl, self.how.target or 1.0)
        self._iteration, self._drawn = -1, list[Drawn]()
        if self.how.prompts % self.plan.batch:
            raise TrainingError(
                f"stage {stage.name!r}: {self.how.prompts} prompts an iteration are no multiple of its batch of "
                f"{self.plan.batch}; a step would learn from two iterations"
            )

    def _read(self, n: int) -> tuple[Sample, Tokens]:
        size = self.how.prompts
        iteration, rest = divmod(n, size * self.how.epochs)
        if iteration != self._iteration:
            self._drawn, self._iteration = self._of(iteration), iteration
        epoch, at = divmod(rest, size)
        order = np.random.default_rng((self.plan.seed, iteration, epoch)).permutation(size)
        tokens = self._drawn[int(order[at])].tokens
        return Sample(Node(()), tokens.origin), tokens

    # ---- an iteration -------------------------------------------------------------------------------------------
    def _of(self, iteration: int) -> list[Drawn]:
        """The iteration from its files, or made now."""
        place = self.folder / f"{self.stage.name}-{iteration}.safetensors"
        first = iteration * self.how.prompts
        try:
            prompts = [self._prompt(first + n) for n in range(self.how.prompts)]
            if not place.exists():
                self._make(iteration, prompts, place)
        except DataError as error:
            # Left to the planner, it would drop every sample of the iteration, and have it drawn again for each.
            raise TrainingError(f"a prompt cannot be used, and an iteration needs all of its: {error}") from error
        facts, held = read_json(place.with_suffix(".json")), load_file(place)
        self.cost.coefficient = facts["kl_cost_after"]
        return self._placed(prompts, held, facts["rewards"])

    def _prompt(self, n: int) -> tuple[Sample, Tokens]:
        """The n-th prompt of the run with its row, and its tokens up to the answers to come."""
        index = self.index(n)
        try:
            sample = _straight(self.source.sample(index))
            turns = sample.root.turns
            if sample.root.children or len(turns) < 2 or turns[-1].role != "assistant":
                raise DataError("no-answer", "a prompt is a conversation that ends in its true answer")
            leaves = tuple(Node(()) for _ in range(self.how.group)) if self.how.group > 1 else ()
            asked = Sample(Node(turns[:-1], leaves), sample.origin)
            return sample, self.template.tokens(asked, self.tokenizer, self.measure, open=True)
        except DataError as error:
            raise error.at(file=self.source.name, row=index + 1) from None

    def _make(self, iteration: int, prompts: list[tuple[Sample, Tokens]], place: Path) -> None:
        how, answers = self.how, list[list[list[int]]]()
        for start in range(0, len(prompts), TOGETHER):
            seed = (self.plan.seed * 1_000_003 + iteration * 1_009 + start) % (1 << 31)
            answers += self._answer([tokens for _, tokens in prompts[start : start + TOGETHER]], seed)
        texts = [[self.text(ids) for ids in each] for each in answers]
        found = self.reward([sample for sample, _ in prompts], texts)
        ended = [[self.stops(ids) for ids in each] for each in answers]
        lengths = torch.tensor([[len(ids) for ids in each] for each in answers])
        ruled = [
            [symbolic(text, len(ids) / how.max_tokens, _numbers(sample), how) for text, ids in zip(*each, strict=True)]
            for (sample, _), *each in zip(prompts, texts, answers, strict=True)
        ]
        worth = self._worth(*(torch.tensor(each) for each in (found, ruled, ended)))
        drawn = [continued(t, ids) for (_, t), ids in zip(prompts, answers, strict=True)]
        if how.advantage == "group" and bool((worth == worth[:, :1]).all()):
            why = "all answers of each prompt are worth the same, so nothing can be learnt from them"
            log.warning("stage %s, iteration %d: %s", self.stage.name, iteration, why)
        known, apart = self._known(drawn, worth)
        self.cost.update(apart, worth.numel()) if how.target else None
        tensors = {
            "lengths": lengths,
            "ids": torch.tensor([i for each in answers for ids in each for i in ids]),
            **known,
        }
        facts = {
            "iteration": iteration,
            "rows": [sample.origin.row for sample, _ in prompts],
            "rewards": found,
            "symbolic": ruled,
            "mean_reward": float(torch.tensor(found).mean()),
            "mean_length": float(tensors["lengths"].float().mean()),
            "ended": float(torch.tensor(ended).float().mean()),
            "kl": apart,
            "kl_cost_after": self.cost.coefficient,
            "answers": texts,
        }
        if dist.is_first():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place.with_suffix(".json"), facts)
            aside = place.with_name(f".{place.name}")
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
            aside.replace(place)
        dist.barrier()

    def _worth(self, found: Tensor, ruled: Tensor, ended: Tensor) -> Tensor:
        """What answers earn at their ends, float32[N, G]: rewards, what rules add, what it costs not to end."""
        how = self.how
        late = how.unended + (0.0 if how.unended_replaces else found)
        return torch.where(ended, found, late) + ruled + how.bias

    def _answer(self, prompts: list[Tokens], seed: int) -> list[list[list[int]]]:
        """Ids of every answer to each prompt; what answers share is read once."""
        how = self.how
        sampling = Sampling(max_tokens=how.max_tokens, temperature=how.temperature, top_p=how.top_p, seed=seed)
        with autocast(self.precision, dist.device()):
            made = generate(self.model, self._batch(prompts), stop=self.stops, sampling=sampling)
        return [made[n * how.group : (n + 1) * how.group] for n in range(len(prompts))]

    def _batch(self, samples: list[Tokens]) -> Batch:
        media = [self.load(item) for tokens in samples for item in tokens.items]
        rows = [[tokens] for tokens in samples]
        return collate(rows, dict(enumerate(media)), pad=self.tokenizer.pad_id).to(dist.device())

    # ---- what is known of each token ----------------------------------------------------------------------------
    def _known(self, drawn: list[Tokens], worth: Tensor) -> tuple[dict[str, Tensor], float]:
        """By name, a number each token of all answers in their order; and the mean KL of an answer."""
        how, policy = self.how, self.stage.policy
        assert policy is not None, "a stage of rollouts has a policy"
        compares = how.kl > 0 or policy.kl > 0
        if compares and not self.stage.adapts:
            raise TrainingError(
                f"stage {self.stage.name!r} measures KL to the model before it, which only adapters leave as it is; "
                "give every part of `train` but the score head a lora"
            )
        old: list[Tensor] = []
        values: list[Tensor] = []
        before: list[Tensor] = []
        for start in range(0, len(drawn), TOGETHER):
            batch = self._batch(drawn[start : start + TOGETHER])
            with self.model.inference(), autocast(self.precision, dist.device()):
                output, logps = self._seen(batch)
                old.append(logps)
                values += [valued(self.model, batch, output).cpu()] if how.advantage == "gae" else []
                if compares:
                    with lora.disabled(self.model):
                        before.append(self._seen(batch)[1])
        known = {"old": torch.cat(old)} | ({"reference": torch.cat(before)} if compares else {})
        lengths = self._lengths(drawn)
        apart = known["old"] - known["reference"] if compares else torch.zeros_like(known["old"])
        if how.advantage == "group":
            group = torch.arange(len(worth)).repeat_interleave(worth.shape[1])
            each = rewards.group_advantages(how.times * worth.flatten(), group, scale=how.scale)
            known["advantage"] = each.repeat_interleave(lengths)
        else:
            known |= self._estimated(known, apart, torch.cat(values), lengths, worth.flatten())
        return known, float(apart.sum() / max(1, worth.numel()))

    def _lengths(self, drawn: list[Tokens]) -> Tensor:
        """Learnt tokens of every answer, int64[A]."""
        return torch.tensor([int((t.weight[t.enter == node] > 0).sum()) for t in drawn for node, _ in t.answers])

    def _seen(self, batch: Batch) -> tuple[Output, Tensor]:
        """What the model makes of a batch, and the log-probability of every target."""
        output = self.model(batch, only_targets=True)
        return output, self.model.target_logps(output, batch.targets).cpu()

    def _estimated(
        self, known: dict[str, Tensor], apart: Tensor, values: Tensor, lengths: Tensor, worth: Tensor
    ) -> dict[str, Tensor]:
        """Values, returns and generalised advantages of every token."""
        how = self.how
        costs = apart if how.estimator == "k1" else rewards.kl(known["old"], known["reference"], estimator="k3")
        costs = costs.clamp_min(0.0) if how.floor else costs
        most = int(lengths.max())
        valid = torch.arange(most)[None, :] < lengths[:, None]
        table, paid = torch.zeros(valid.shape), torch.zeros(valid.shape)
        table[valid], paid[valid] = values, -self.cost.coefficient * costs
        paid[torch.arange(len(lengths)), lengths - 1] += worth
        paid = rewards.whiten(paid, valid, shift=False) if how.whiten_rewards else how.times * paid
        found, returns = rewards.advantages(paid, table, valid, gamma=how.gamma, lam=how.lam)
        if how.whiten:
            found = rewards.whiten(found, valid)
        return {"value": values, "advantage": found[valid], "return": returns[valid]}

    def _placed(self, prompts: list[tuple[Sample, Tokens]], held: dict[str, Tensor], worth: Any) -> list[Drawn]:
        """The iteration's answers behind their prompts, with what is known of each token."""
        ids = iter(held["ids"].split(held["lengths"].flatten().tolist()))
        names = [name for name in held if name not in ("ids", "lengths")]
        at, made = 0, list[Drawn]()
        for (_, prompt), lengths, found in zip(prompts, held["lengths"].tolist(), worth, strict=True):
            tokens = continued(prompt, [next(ids).tolist() for _ in lengths])
            learnt, known = tokens.learnt, {}
            for name in names:
                known[name] = torch.zeros(len(tokens))
                known[name][learnt] = held[name][at : at + len(learnt)]
            at += len(learnt)
            scored = tuple((node, Answer(score)) for (node, _), score in zip(tokens.answers, found, strict=True))
            made.append(Drawn(replace(tokens, known=known, answers=scored), tuple(found)))
        return made


def _straight(sample: Sample) -> Sample:
    """A prompt whose one answer is a branch, as rows with numbers of their own have it, as a conversation."""
    root = sample.root
    if len(root.children) != 1 or root.children[0].children:
        return sample
    [answer] = root.children
    return replace(sample, root=Node((*root.turns, *answer.turns), answer=answer.answer))


def _numbers(sample: Sample) -> Mapping[str, float]:
    return sample.root.answer.numbers if sample.root.answer else {}


def continued(prompt: Tokens, answers: Sequence[Sequence[int]]) -> Tokens:
    """A prompt that waits for its answers, with these ids behind its leaves, in the order of the leaves; all learnt."""
    leaves = open_ends(prompt.enter.tolist(), prompt.exit.tolist())
    assert len(leaves) == len(answers), f"{len(answers)} answers for {len(leaves)} leaves"
    columns: dict[str, list[Tensor]] = {name: [] for name in ("ids", "enter", "exit", "order", "position", "parent")}
    count, told = len(prompt), list[tuple[int, Answer]]()
    for (node, column), ids in zip(leaves, answers, strict=True):
        n, here = len(ids), torch.arange(len(ids))
        columns["ids"].append(torch.tensor(list(ids), dtype=torch.int64))
        columns["enter"].append(torch.full((n,), node))
        columns["exit"].append(torch.full((n,), node + 1))
        columns["order"].append(here + count)
        columns["position"].append(here + int(prompt.position[column]) + 1)
        columns["parent"].append(torch.cat([torch.tensor([column]), here[:-1] + count]))
        told.append((node, Answer()))
        count += n
    vectors = {name: torch.cat([getattr(prompt, name), *pieces]) for name, pieces in columns.items()}
    weight = torch.cat([torch.zeros(len(prompt)), torch.ones(count - len(prompt))])
    return replace(prompt, **vectors, weight=weight, answers=tuple(told))
