"""A judge of published weights: any model that transformers' own classes load, asked as its chat template has it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from quintet import dist
from quintet.data.media import decode_image
from quintet.errors import ConfigError, QuintetError
from quintet.evaluation.judge import Asked
from quintet.evaluation.written import WARMER, WRITTEN, WrittenJudge, in_words

__all__ = ["PublishedJudge"]

_GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}
_DRAWN: dict[str, Any] = _GREEDY | {"do_sample": True, "temperature": WARMER, "top_p": 1.0, "top_k": 0}
"""All that a folder's generation config may have set otherwise."""


class PublishedJudge(WrittenJudge):
    """A folder that one of transformers' classes loads: with pictures, of words alone, or encoder–decoder.

    One prompt at a time: what it says of one must not depend on which others stand beside it. Where the folder has no
    chat template, the processor places the picture, as BLIP-2's does.

    Raises:
        ConfigError: transformers cannot load it whole; code that comes with weights is not run, nor are pickles read.
    """

    def __init__(self, folder: Path, *, identity: str, cache: Path) -> None:
        super().__init__(name=str(folder.resolve()), identity=identity, cache=cache)
        self.sees, self.processor, self.model = _load(folder)
        words = getattr(self.processor, "tokenizer", self.processor)
        self.template: str | None = self.processor.chat_template or words.chat_template

    def say(self, prompts: Sequence[str], asked: Asked, *, again: int) -> Iterator[str]:
        """What it writes, the likeliest words at first.

        Raises:
            ConfigError: it reads no pictures, or only with one, or where they stand in its prompt is not known.
            DataError: the picture cannot be read.
        """
        seen = asked.picture is not None and not asked.caption
        if seen and not self.sees:
            raise ConfigError(f"the judge {self.name} reads words alone, and is to see a picture; `proxy` lets it read")
        shown = [decode_image(asked.picture)] if seen and asked.picture else []
        for prompt in prompts:
            yield self._said(in_words(asked, prompt), shown, seed=again)

    def _said(self, prompt: str, shown: list[Any], *, seed: int) -> str:
        try:
            inputs = self._inputs(prompt, shown)
        except QuintetError:
            raise
        # Templates and processors raise whatever they like, Jinja's own errors among it.
        except Exception as error:
            raise ConfigError(
                f"the judge {self.name} cannot be asked ({type(error).__name__}: {error}); where words and pictures "
                "stand in its prompt is what its chat template says (chat_template.jinja)"
            ) from error
        try:
            return self._written(inputs, seed=seed)
        except (LookupError, TypeError, ValueError) as error:
            without = "; it may read no prompt without a picture" if self.sees and not shown else ""
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"the judge {self.name} writes no answer ({reason}){without}") from error

    def _inputs(self, prompt: str, shown: list[Any]) -> Any:
        if not self.template:
            return self.processor(text=[prompt], **({"images": shown} if shown else {}), return_tensors="pt")
        parts = [*({"type": "image", "image": each} for each in shown), {"type": "text", "text": prompt}]
        how: dict[str, Any] = {"chat_template": self.template, "add_generation_prompt": True}
        # Models that think aloud by default would not come to the verdict; other templates do not read it.
        how["enable_thinking"] = False
        said = [{"role": "user", "content": parts if self.sees else prompt}]
        if self.sees and "{'type'" in self.processor.apply_chat_template(said, tokenize=False, **how):
            if shown:
                raise ConfigError(f"the chat template of {self.name} takes text alone, and is to place a picture")
            said = [{"role": "user", "content": prompt}]
        return self.processor.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt", **how)

    @torch.no_grad()
    def _written(self, inputs: Any, *, seed: int) -> str:
        to = {name: self.model.dtype if each.is_floating_point() else each.dtype for name, each in inputs.items()}
        inputs = {name: each.to(self.model.device, to[name]) for name, each in inputs.items()}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            [ids] = self.model.generate(**inputs, max_new_tokens=WRITTEN, **(_DRAWN if seed else _GREEDY))
        prompt = inputs["input_ids"][0]
        if torch.equal(ids[: len(prompt)], prompt):
            ids = ids[len(prompt) :]
        return str(self.processor.decode(ids, skip_special_tokens=True)).strip()


def _load(folder: Path) -> tuple[bool, Any, Any]:
    """Whether it reads pictures, what spells its prompts, and the model where it runs."""
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
        # Of an encoder–decoder the causal class is the decoder alone.
        words = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        kinds: list[Any] = [k for k in (AutoModelForImageTextToText, words) if type(config) in k._model_mapping]
        if not kinds:
            raise ConfigError(f"the judge {folder} is a {config.model_type}, which writes no text in transformers")
        sees = kinds[0] is AutoModelForImageTextToText
        model, info = kinds[0].from_pretrained(
            str(folder), use_safetensors=True, dtype="auto", output_loading_info=True, **here
        )
        spells = (AutoProcessor if sees else AutoTokenizer).from_pretrained(str(folder), **here)
        model = model.to(dist.device()).eval()
    except QuintetError:
        raise
    # A damaged file ends in any of Python's errors (`components/tokenizer_folder.py`).
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"transformers cannot load the judge {folder} ({type(error).__name__}: {reason})") from None
    if lacking := sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]})):
        raise ConfigError(f"the judge {folder} lacks weights, which would be random: {', '.join(lacking[:4])} …")
    if sees and not hasattr(spells, "image_processor"):
        raise ConfigError(f"the judge {folder} sees, and nothing there prepares pictures (preprocessor_config.json)")
    return sees, spells, model
