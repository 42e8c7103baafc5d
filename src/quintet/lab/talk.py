"""A conversation with a trained model, turn by turn, with the pictures that were shown."""

from collections.abc import Iterator
from pathlib import Path

from quintet.components.llms.none import NoLLM
from quintet.data.media import image_size, num_frames
from quintet.data.processor import Processor
from quintet.errors import DataError, QuintetError
from quintet.model.checkpoint import CAPTIONS, read_json
from quintet.model.generate import Sampling
from quintet.model.mllm import MLLM
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Part, Ref, Sample, Text, Turn

__all__ = ["Talk", "silent"]


class Talk:
    """What has been said so far. Pictures that are shown go with the next question, in their order."""

    def __init__(self, engine: Engine, *, sampling: Sampling | None = None) -> None:
        self.engine, self.sampling = engine, sampling
        self.turns: list[Turn] = []
        self.shown: list[Media] = []

    def show(self, picture: Path) -> int:
        """Shows a picture, after those that were shown before it; gives its frames, of which the first is shown.

        Raises:
            DataError: it is missing or no picture.
        """
        if not picture.is_file():
            raise DataError("missing-file", "no such picture", file=str(picture))
        ref = Ref(picture.name, picture.resolve())
        image_size(ref)
        self.shown.append(Media("image", ref))
        return num_frames(ref)

    def forget(self) -> None:
        """Starts anew: neither words nor pictures stay."""
        self.turns, self.shown = [], []

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece; the turn is remembered once it is whole."""
        parts: tuple[Part, ...] = (*self.shown, Text(question))
        asked = Turn("user", parts)
        answer = ""
        for piece in self.engine.stream(Sample(Node((*self.turns, asked))), sampling=self.sampling):
            answer += piece
            yield piece
        self.turns += [asked, Turn("assistant", (Text(answer),))]
        self.shown = []


def silent(run: Path) -> str:
    """Why a run that has a model can neither talk nor find captions, as `Engine.open` would say it; "" if it can."""
    place = run / "model"
    model = MLLM.Config.from_json(read_json(place / "config.json")["model"])
    try:
        Processor.load(place / CAPTIONS if isinstance(model.llm, NoLLM.Config) else place, model)
    except QuintetError as error:
        return str(error)
    return ""
