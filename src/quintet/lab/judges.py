"""Judges by name: the truth, a model of ours, an endpoint."""

from collections.abc import Sequence
from pathlib import Path

from quintet.data.scenes.claims import Claim
from quintet.data.scenes.vocabulary import indefinite
from quintet.errors import ConfigError
from quintet.evaluation.endpoint import EndpointJudge
from quintet.evaluation.judge import Asked, Rating, TruthJudge
from quintet.evaluation.metrics.rated import Asking
from quintet.lab.run import cache_folder
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Sample, Text, Turn

__all__ = ["ModelJudge", "judge_of", "rater_of"]

RATING = 256
"""Tokens that a model of ours may take to rate."""


def judge_of(name: str) -> "TruthJudge | EndpointJudge | ModelJudge":
    """A judge by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "truth":
        return TruthJudge()
    if name.startswith(("http://", "https://")):
        return EndpointJudge(name, cache=cache_folder() / "judge")
    if Path(name).is_dir():
        return ModelJudge(Engine.open(Path(name)), name=Path(name).name)
    raise ConfigError(f"no judge {name!r}; there are truth, a run's folder, and a URL (http://…/v1)")


def rater_of(name: str) -> Asking:
    """Who rates MMHal-Bench's answers, from words alone.

    Raises:
        ConfigError: there is none of that name; the truth is one of Scenes only.
    """
    judge = judge_of(name)
    if isinstance(judge, TruthJudge):
        raise ConfigError("the exact truth is known of Scenes alone, ask scenes.mmhal; or name a run's folder or a URL")
    return Asking(judge.name, judge.ask)


class ModelJudge:
    """Any model of ours that answers questions with yes or no: RLAIF-V's open labeler."""

    def __init__(self, engine: Engine, *, name: str) -> None:
        self.engine, self.name = engine, name

    def ask(self, prompt: str) -> str:
        """What it says to words alone."""
        [text] = self.engine.answer([Sample(Node((Turn("user", (Text(prompt),)),)))], max_tokens=RATING)
        return text

    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating]:
        """By claims: faithfulness is the share that the model confirms, helpfulness grows with their number."""
        from quintet.data.scenes.claims import claims

        made: list[Rating] = []
        for answer in answers:
            said = claims(answer)
            held = self.holds(asked, said)
            made.append(Rating(1 + min(4, sum(held)), 1 + 4 * sum(held) / len(said) if said else 1.0))
        return made

    def holds(self, asked: Asked, said: Sequence[Claim]) -> list[bool]:
        """Whether the model says yes to each claim as a question about the picture."""
        if asked.picture is None:
            raise ConfigError("a model judges what it sees, and no picture came with the question")
        prompts = [
            Sample(Node((Turn("user", (Media("image", asked.picture), Text(_question(claim)))),))) for claim in said
        ]
        return [text.strip().lower().startswith("yes") for text in self.engine.answer(prompts)] if prompts else []


def _question(claim: Claim) -> str:
    """The claim as a question, in the words of Scenes."""
    if claim.kind == "object":
        return f"Is there {indefinite(claim.what)} in the picture?"
    return f"Is the {claim.kind} {claim.what} in the picture?"
