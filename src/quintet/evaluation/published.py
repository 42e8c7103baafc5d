"""A judge of published weights: any model that transformers' own classes load, asked as its chat template has it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from quintet import dist
from quintet.data.media import decode_image
from quintet.errors import ConfigError
from quintet.evaluation.judge import Asked
from quintet.evaluation.written import WARMER, WRITTEN, WrittenJudge, in_words
from quintet.values import Ref

__all__ = ["PublishedJudge"]


class PublishedJudge(WrittenJudge):
    """A folder that one of transformers' classes loads: with pictures, of words alone, or encoder–decoder.

    One prompt at a time: what it says of one must not depend on which others stand beside it. Where the folder has no
    chat template, the processor places the picture, as BLIP-2's does.

    Raises:
        ConfigError: transformers cannot load it; code that comes with weights is not run, nor are pickles read.
    """

    def __init__(self, folder: Path, *, identity: str, cache: Path) -> None:
        super().__init__(name=str(folder.resolve()), identity=identity, cache=cache)
        self.sees, self.processor, model = _load(folder)
        self.model = model.to(dist.device()).eval()

    def say(self, prompts: Sequence[str], asked: Asked, *, again: int) -> Iterator[str]:
        """What it writes, the likeliest words at first.

        Raises:
            ConfigError: it reads no pictures, or its processor cannot place one.
        """
        seen = asked.picture is not None and not asked.caption
        if seen and not self.sees:
            raise ConfigError(
                f"the judge {self.name} reads words alone, and is to see a picture; with `proxy` it reads"
            )
        for number, prompt in enumerate(prompts):
            try:
                inputs = self._inputs(in_words(asked, prompt), asked.picture if seen else None)
                yield self._written(inputs, seed=again and again * len(prompts) + number)
            except (LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"the judge {self.name} cannot be asked ({type(error).__name__}: {error}); where words and "
                    "pictures stand in its prompt is what its chat template says (chat_template.jinja)"
                ) from error

    def _inputs(self, prompt: str, picture: Ref | None) -> Any:
        shown = [] if picture is None else [decode_image(picture)]
        if not self.processor.chat_template:
            return self.processor(text=[prompt], **({"images": shown} if shown else {}), return_tensors="pt")
        parts = [*({"type": "image", "image": each} for each in shown), {"type": "text", "text": prompt}]
        # Templates of models of words alone take a text, those of models that see take parts.
        said = [{"role": "user", "content": parts if self.sees else prompt}]
        return self.processor.apply_chat_template(
            said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    @torch.no_grad()
    def _written(self, inputs: Any, *, seed: int) -> str:
        to = {name: each.dtype for name, each in inputs.items()}
        to |= {name: self.model.dtype for name, each in inputs.items() if each.is_floating_point()}
        inputs = {name: each.to(self.model.device, to[name]) for name, each in inputs.items()}
        drawn: dict[str, Any] = {"do_sample": True, "temperature": WARMER} if seed else {"do_sample": False}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            [ids] = self.model.generate(**inputs, max_new_tokens=WRITTEN, num_beams=1, **drawn)
        prompt = inputs["input_ids"][0]
        if torch.equal(ids[: len(prompt)], prompt):
            ids = ids[len(prompt) :]
        return str(self.processor.decode(ids, skip_special_tokens=True)).strip()


def _load(folder: Path) -> tuple[bool, Any, Any]:
    """Whether it reads pictures, what spells its prompts, and the model."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
        AutoProcessor,
        AutoTokenizer,
    )

    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(folder), **here)
        for kind, spells in (
            (AutoModelForImageTextToText, AutoProcessor),
            (AutoModelForCausalLM, AutoTokenizer),
            (AutoModelForSeq2SeqLM, AutoTokenizer),
        ):
            if type(config) in kind._model_mapping:
                model = kind.from_pretrained(str(folder), use_safetensors=True, dtype="auto", **here)
                return kind is AutoModelForImageTextToText, spells.from_pretrained(str(folder), **here), model
    # A damaged file ends in any of Python's errors (`components/tokenizer_folder.py`).
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"transformers cannot load the judge {folder} ({type(error).__name__}: {reason})") from None
    raise ConfigError(f"the judge {folder} is a {config.model_type}, which writes no text in transformers")
