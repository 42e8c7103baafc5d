"""A trained model that answers: prompts in, text out, in batches or word by word."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from queue import Queue
from threading import Thread

import torch
from safetensors.torch import load_file

from quintet.components.llms.none import NoLLM
from quintet.data.processor import Processor
from quintet.errors import CheckpointError, ConfigError, DataError
from quintet.evaluation.run import Answer
from quintet.evaluation.task import Task
from quintet.model.checkpoint import CAPTIONS, TRAINED, load_model
from quintet.model.generate import Sampling, generate
from quintet.model.mllm import MLLM
from quintet.serving.retrieval import Retriever
from quintet.values import Batch, Sample

__all__ = ["Engine"]


class Engine:
    """A model, its processor, and where they run.

    `captions` spells captions where it can find pictures by them, with the weights in the file `matched` if a later
    stage changed them.
    """

    def __init__(
        self,
        model: MLLM,
        processor: Processor,
        *,
        captions: Processor | None = None,
        matched: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.captions, self.matched = torch.device(device), captions, matched
        self.model, self.processor = model.to(self.device).eval(), processor
        end = processor.template.end
        stop = processor.template.stop_id(processor.tokenizer)
        self._stop_ids = {i for i in (stop, processor.tokenizer.specials.get(processor.tokenizer.eos)) if i is not None}
        self._stop_text = end if stop is None else ""
        self._stopped = processor.stops()

    @classmethod
    def open(cls, folder: Path, *, device: torch.device | str = "cpu") -> "Engine":
        """The engine of a run's folder, or of its model/ folder.

        Raises:
            CheckpointError: there is no finished model.
        """
        place = folder / "model" if (folder / "model").is_dir() else folder
        if not (place / "config.json").exists():
            raise CheckpointError(
                f"{folder} holds no finished model; the command that began it finishes it with --resume"
            )
        model = load_model(place).float()
        captions = Processor.load(place / CAPTIONS, model.config) if (place / CAPTIONS).is_dir() else None
        # A model that only compares pictures with captions speaks no other way.
        spoken = captions if isinstance(model.llm, NoLLM) else None
        processor = spoken or Processor.load(place, model.config)
        matched = place / CAPTIONS / TRAINED
        return cls(model, processor, captions=captions, matched=matched if matched.exists() else None, device=device)

    @property
    def specials(self) -> tuple[str, ...]:
        """The special tokens, which no text spells: it may write them all the same."""
        return tuple(self.processor.tokenizer.specials)

    def fits(self, task: Task) -> bool:
        """Whether the model can be asked the task: rankings need a connector that matches, answers an LLM."""
        return self.captions is not None if task.together else not isinstance(self.model.llm, NoLLM)

    def answers(self, task: Task, *, batch_size: int = 64) -> Answer:
        """What answers the task's prompts: with text, or with rankings where it asks for those.

        Raises:
            ConfigError: the model cannot be asked this task.
        """
        if not task.together:
            return lambda samples: self.answer(samples, batch_size=batch_size)
        if self.captions is None:
            raise ConfigError(f"{task.name} asks which caption fits a picture; this model was not taught it (BLIP-2's)")
        weights = load_file(self.matched, device=str(self.device)) if self.matched else None
        return Retriever(self.model, self.captions, weights=weights).rank

    def answer(self, samples: Sequence[Sample], *, max_tokens: int = 96, batch_size: int = 64) -> list[str]:
        """The answer to each prompt: a sample whose last turn is the user's. Greedy, so it repeats.

        Prompts of like length run together; the answers come back in order.
        """
        order = sorted(range(len(samples)), key=lambda i: (len(self.processor.tokens(samples[i], open=True)), i))
        answers = [""] * len(samples)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.processor.batch([samples[i] for i in chosen], open=True)
            for i, text in zip(chosen, self._run(batch, Sampling(max_tokens=max_tokens)), strict=True):
                answers[i] = text
        return answers

    def sampled(self, samples: Sequence[Sample], *, sampling: Sampling) -> list[list[str]]:
        """The answers to each prompt, one for every leaf of its tree; what leaves share is read once."""
        batch = self.processor.batch(list(samples), open=True)
        texts = self._run(batch, sampling)
        counts = [sum(not node.children for node in sample.root.walk()) for sample in samples]
        assert len(texts) == sum(counts), f"{len(texts)} answers for {sum(counts)} leaves"
        return [texts[stop - count : stop] for count, stop in zip(counts, accumulate(counts), strict=True)]

    def stream(self, sample: Sample, *, sampling: Sampling | None = None) -> Iterator[str]:
        """The answer to one prompt, piece by piece as it is made."""
        batch = self.processor.batch([sample], open=True).to(self.device)
        pieces: Queue[int | BaseException | None] = Queue()

        def work() -> None:
            try:
                generate(
                    self.model,
                    batch,
                    stop=self._stopped,
                    sampling=sampling,
                    on_token=lambda _, token: pieces.put(token),
                )
                pieces.put(None)
            except BaseException as error:  # handed to the reader, who raises it
                pieces.put(error)

        Thread(target=work, daemon=True).start()
        ids: list[int] = []
        shown = ""
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            ids.append(piece)
            text = self._text(ids)
            # A character of several bytes may be half there, and a stop text half written.
            if not text.endswith("\ufffd") and text.startswith(shown):
                yield text[len(shown) :]
                shown = text

    def _run(self, batch: Batch, sampling: Sampling) -> list[str]:
        limit = getattr(self.model.config.llm, "max_positions", None)
        if limit is not None and int(batch.positions.max()) + 1 > limit:
            raise DataError("too-long", f"a prompt of {int(batch.positions.max()) + 1} tokens; the model takes {limit}")
        ids = generate(self.model, batch.to(self.device), stop=self._stopped, sampling=replace(sampling))
        return [self._text(answer) for answer in ids]

    def _text(self, ids: list[int]) -> str:
        ids = [i for i in ids if i not in self._stop_ids]
        text = self.processor.text(ids)
        return (text.split(self._stop_text)[0] if self._stop_text else text).strip()
