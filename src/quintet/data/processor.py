"""What turns words and pictures into what a model takes: saved beside it, so that chat spells as training did."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quintet.components.roles import ImageSpec
from quintet.components.tokenizer_folder import READER
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.pipeline import measure_with
from quintet.data.template import Template
from quintet.data.texts import Texts
from quintet.data.tokenizer import Tokenizer
from quintet.errors import CheckpointError, ConfigError
from quintet.model.checkpoint import read_json, write_json
from quintet.model.mllm import MLLM
from quintet.values import Batch, Region, Sample, Tokens

__all__ = ["Processor"]

_TAIL = 16
"""Tokens in which an end marker of several tokens is looked for."""


@dataclass(frozen=True)
class Processor:
    """Tokenizer, template and the model's own arithmetic of columns."""

    tokenizer: Tokenizer
    template: Template
    model: MLLM.Config

    @cached_property
    def texts(self) -> Texts:
        """What the model's experts write."""
        return Texts(self.model.experts)

    def tokens(self, sample: Sample, *, open: bool = False) -> Tokens:
        """The sample as tokens; `open` leaves the last answer to be written."""
        sample = self.texts.sample(sample)
        specs = {kind: self.model.spec(kind) for kind in self.model.encoders}
        return self.template.tokens(sample, self.tokenizer, measure_with(specs, self.model.columns), open=open)

    def batch(self, samples: list[Sample], *, open: bool = False) -> Batch:
        """A row a sample, padded, with media loaded."""
        rows = [[self.tokens(sample, open=open)] for sample in samples]
        items = [item for row in rows for tokens in row for item in tokens.items]
        media = {n: Loaded(load_image(item.ref, self.spec(item.kind))) for n, item in enumerate(items)}
        return collate(rows, media, pad=self.tokenizer.pad_id)

    def spec(self, kind: str) -> ImageSpec:
        """How media of this kind are prepared."""
        return self.model.spec(kind)

    def text(self, ids: list[int]) -> str:
        """What a model wrote, as text: the tokens that the template adds are part of it, the LLM's own control not."""
        kept = {self.tokenizer.specials[token] for token in self.template.added_tokens}
        hidden = set(self.tokenizer.specials.values()) - kept
        return self.tokenizer.decode([i for i in ids if i not in hidden], keep_special=True)

    def regions(self, prompt: Sample, text: str) -> list[Region]:
        """The regions in an answer to `prompt`, read as the template spells them; malformed ones are none."""
        return self.template.read_regions(text, prompt.media())

    def stops(self) -> Callable[[list[int]], bool]:
        """Tells of the ids of an answer so far whether it ends with the last of them.

        It ends at the token of the template's end marker, at the tokenizer's own, or where the marker's text stands.
        """
        stop, eos = self.template.stop_id(self.tokenizer), self.tokenizer.specials.get(self.tokenizer.eos)
        text = self.template.end if stop is None else ""

        def ends(ids: list[int]) -> bool:
            if ids[-1] in (stop, eos):
                return True
            return bool(text) and text in self.tokenizer.decode(ids[-_TAIL:], keep_special=True)

        return ends

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files and `processor.json`."""
        self.tokenizer.save(folder)
        write_json(folder / "processor.json", {"template": self.template.to_json()})

    @classmethod
    def load(cls, folder: Path, model: MLLM.Config) -> "Processor":
        """The processor of a saved model.

        Raises:
            CheckpointError: a file is missing or does not describe a processor.
        """
        try:
            template = Template.from_json(read_json(folder / "processor.json")["template"])
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{folder / 'processor.json'} describes no template: {error}") from None
        tokenizer = Tokenizer.load(folder)
        unknown = [token for token in template.special_tokens if tokenizer.backend.token_to_id(token) is None]
        if unknown:
            raise CheckpointError(
                f"{folder}: the tokenizer has no {', '.join(unknown[:4])}, which the template {template.name!r} "
                "writes; import it with the --template that it was trained on"
            )
        # Some are in published files as ordinary words (Kosmos-2's).
        tokenizer.add(*template.special_tokens)
        if any(config.own_words for config in model.connectors.values()) and tokenizer.reader is None:
            raise CheckpointError(
                f"{folder}: the connector reads with a tokenizer of its own; expected {READER}/ there"
            )
        return cls(tokenizer, template, model)
