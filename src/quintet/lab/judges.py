"""Judges by name: the truth, a model of ours, one of transformers, an endpoint."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from quintet.answers import Answer
from quintet.data.scenes.claims import claims
from quintet.data.scenes.vocabulary import indefinite
from quintet.errors import ConfigError
from quintet.evaluation.endpoint import EndpointJudge
from quintet.evaluation.judge import Asked, Judge, Rating, TruthJudge, rated, sentences
from quintet.evaluation.metrics.rated import Asking, read_rating
from quintet.evaluation.published import PublishedJudge
from quintet.evaluation.written import WARMER, WRITTEN, Choices, WrittenJudge, in_words
from quintet.model.checkpoint import ends_digest, read_json
from quintet.model.generate import Sampling
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Sample, Text, Turn

__all__ = ["ModelJudge", "judge_of", "rater_of"]

TOGETHER = 16
"""Questions that a model of ours is asked in one batch."""


def judge_of(name: str, *, cache: Path) -> Judge:
    """A judge by its name; what it says is kept in `cache`.

    Raises:
        ConfigError: there is none of that name, or it is a folder of another library.
    """
    if name == "truth":
        return TruthJudge()
    written = _written(name, cache)
    if written is None:
        raise ConfigError(
            f"no judge {name!r}; there are truth, the folder of a run or of transformers, and a URL (http://…/v1)"
        )
    return written


def rater_of(name: str, *, cache: Path) -> Asking:
    """Who rates MMHal-Bench's answers, from words alone.

    Raises:
        ConfigError: there is none of that name; the truth is one of Scenes only.
    """
    if name == "truth":
        raise ConfigError(
            "the exact truth is known of Scenes alone, ask scenes.mmhal; or name the folder of a run or of a model of "
            "transformers, or a URL"
        )
    written = _written(name, cache)
    if written is None:
        raise ConfigError(
            f"no judge {name!r}; there are the folder of a run or of transformers, and a URL (http://…/v1)"
        )
    return Asking(written.name, partial(written.ask, readable=lambda text: read_rating(text) is not None))


def _written(name: str, cache: Path) -> WrittenJudge | None:
    if name.startswith(("http://", "https://")):
        return EndpointJudge(name, cache=cache)
    folder = Path(name)
    if not folder.is_dir():
        return None
    model = folder / "model" if (folder / "model").is_dir() else folder
    # One that was trained again or is spelt otherwise is another judge: what the one before said is not its own.
    files = sorted(each for each in model.iterdir() if each.is_file())
    identity = f"{folder.resolve()} {[(each.name, ends_digest(each)) for each in files]}"
    if (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json"):
        return PublishedJudge(folder, identity=identity, cache=cache)
    return ModelJudge(Engine.open(folder), name=str(folder.resolve()), identity=identity, cache=cache)


class ModelJudge(WrittenJudge):
    """Any model of ours that sees or reads: RLAIF-V's open labeler.

    Where it has to choose (yes or no, 1 to 3), what counts is not what it would write but which word is likelier, as
    in RLAIF-V (Yu et al. 2024, arXiv:2405.17220): p(yes) + p(Yes) against p(no) + p(No).
    """

    def __init__(self, engine: Engine, *, name: str, identity: str, cache: Path) -> None:
        super().__init__(name=name, identity=identity, cache=cache)
        self.engine = engine

    def say(self, prompts: Sequence[str], asked: Asked, *, again: int) -> list[str]:
        """What it writes, the likeliest words at first."""
        sampling = Sampling(max_tokens=WRITTEN, temperature=WARMER if again else 0.0, seed=again)
        found: list[str] = []
        for some in _some(prompts):
            found += [
                text for [text] in self.engine.sampled([_sample(asked, each) for each in some], sampling=sampling)
            ]
        return found

    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating | None]:
        """By sentences: faithfulness is the share that the model confirms, helpfulness grows with their number.

        Small models cannot write ratings, and this asks for none.
        """
        made: list[Rating | None] = []
        for answer in answers:
            held = self.holds(asked, said := sentences(answer))
            sure = sum(each is True for each in held)
            made.append(rated(asked, 1 + min(4, sure), 1 + 4 * sure / len(said) if said else 1.0))
        return made

    def holds(self, asked: Asked, said: Sequence[str]) -> list[bool | None]:
        """Whether the model finds yes likelier than no of each sentence.

        Raises:
            ConfigError: it is shown nothing and told nothing.
        """
        if asked.picture is None and not asked.caption:
            raise ConfigError("a model judges what it sees or reads; neither a picture nor a caption came")
        return super().holds(asked, said)

    def choose(self, prompts: Sequence[str], asked: Asked, choices: Choices) -> list[str | None]:
        """The likeliest of the verdicts; what is kept is that one, with the odds."""
        found = self.read(prompts, asked, lambda text: text, say=partial(self._odds, asked=asked, choices=choices))
        return [text and text.partition(" ")[0] for text in found]

    def question(self, sentence: str) -> str:
        """A claim of Scenes as its own questions ask, anything else as it stands."""
        said = claims(sentence)
        if len(said) != 1:
            return super().question(sentence)
        [claim] = said
        if claim.kind == "object":
            return f"Is there {indefinite(claim.what)} in the picture?"
        return f"Is the {claim.kind} {claim.what} in the picture?"

    @torch.no_grad()
    def _odds(self, prompts: Sequence[str], *, asked: Asked, choices: Choices) -> Iterator[str]:
        """`yes (0.71 0.12)` to each: the likeliest, and the probability of each in their order.

        A word of several tokens is as likely as all of them are, one after the other; the answer's end is left out.
        """
        words = [(verdict, Turn("assistant", (Text(word),))) for verdict, said in choices.items() for word in said]
        branches = tuple(Node((turn,), answer=Answer(name=verdict)) for verdict, turn in words)
        for some in _some(prompts):
            trees = [_sample(asked, prompt, *branches) for prompt in some]
            batch = self.engine.processor.batch(trees).to(self.engine.device)
            logps = self.engine.model.target_logps(self.engine.model(batch, only_targets=True), batch.targets)
            assert batch.answers is not None
            nodes = [batch.targets.node == node for node in batch.answers.node.tolist()]
            tail = _shared_tail([batch.targets.ids[own].tolist() for own in nodes[: len(words)]])
            likely = [float(logps[own][: int(own.sum()) - tail].sum().exp()) for own in nodes]
            for start in range(0, len(likely), len(words)):
                odds = dict.fromkeys(choices, 0.0)
                for (verdict, _), each in zip(words, likely[start:], strict=False):
                    odds[verdict] += each
                yield f"{max(odds, key=lambda name: odds[name])} ({' '.join(f'{each:.4f}' for each in odds.values())})"


def _sample(asked: Asked, prompt: str, *branches: Node) -> Sample:
    """The picture and the prompt, or words alone."""
    shown = (Media("image", asked.picture),) if asked.picture and not asked.caption else ()
    return Sample(Node((Turn("user", (*shown, Text(in_words(asked, prompt)))),), branches))


def _some(prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(prompts), TOGETHER):
        yield prompts[start : start + TOGETHER]


def _shared_tail(answers: Sequence[Sequence[int]]) -> int:
    """How many tokens different words end with alike: the end marker's."""
    count = 0
    while all(len(each) > count for each in answers) and len({each[-1 - count] for each in answers}) == 1:
        count += 1
    return count
