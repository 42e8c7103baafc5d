"""A release in its authors' own layout becomes a run: `quintet import FOLDER --as RECIPE --out RUN`.

There is no class of transformers to compare logits with, so there is no parity.json. What is sure is that the file's
names and shapes and the recipe's are the same to the last weight; RUN/released.json says what came from where.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch

from quintet.components.tokenizer_folder import TOKENIZER_FILES
from quintet.data.processor import Processor
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.lab.pretrained import load_published, load_tokenizer
from quintet.model.checkpoint import save_model, write_json
from quintet.model.convert import kind_of
from quintet.model.mllm import MLLM
from quintet.model.released.files import Weights
from quintet.model.released.systems import layout_of
from quintet.model.released.table import Layout, Plan, load, made_shape, match
from quintet.recipes._recipe import Recipe

__all__ = ["Released", "import_released", "load_released", "plan_of"]


@dataclass(frozen=True)
class Released:
    """What an import made."""

    recipe: str
    source: str
    """Name of the folder."""
    parameters: int
    weights: int
    """Tensors of the release that are in use."""
    dropped: tuple[str, ...]
    """Its tensors that are not."""
    elsewhere: tuple[str, ...]
    """Parts with weights that are not in the release, but in those published with the encoder or the LLM."""
    dtype: str

    def line(self) -> str:
        """For a terminal."""
        parts = f"; published weights in {', '.join(self.elsewhere)}" if self.elsewhere else ""
        return (
            f"{self.recipe}: {self.parameters:,} parameters ({self.dtype}) of {self.weights} weights in {self.source}, "
            f"{len(self.dropped)} without use{parts}"
        )


def import_released(
    source: Path, out: Path, *, of: tuple[str, Recipe], template: Template, download: bool = False
) -> Released:
    """Writes RUN/model/ with a processor if there is a tokenizer, and RUN/released.json.

    `of` is the system by its name, and its recipe.

    Raises:
        ConfigError: no table for this recipe, a folder that transformers saved, or `out` is not empty.
        CheckpointError: files that cannot be read, or that are not this release to the last weight.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name another --out")
    name, recipe = of
    if kind := kind_of(source):
        raise ConfigError(
            f"{source / 'config.json'} has model_type {kind!r} as transformers saves it, not as the authors "
            f"of {name} released theirs: leave out --as {name}"
        )
    layout = layout_of(name, recipe.model)
    files = Weights(source)
    plan = plan_of(layout, files)
    parts, place = _parts(layout, plan), out / "model"
    with_tokenizer = any((source / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
    processor: Processor | None = None
    vocab = layout.model.llm.vocab
    if "llm" in parts and not with_tokenizer:
        tokenizer = load_tokenizer(layout.model, added=recipe.added_tokens, download=download)
        processor, vocab = Processor(tokenizer, template, layout.model), max(vocab, tokenizer.vocab)
    model = load_released(layout, files, plan, vocab=vocab, download=download)
    save_model(model, place)
    if processor is not None:
        processor.save(place)
    else:
        for file in TOKENIZER_FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, place / file)
        write_json(place / "processor.json", {"template": template.to_json()})
    made = Released(
        recipe=name,
        source=source.name,
        parameters=sum(p.numel() for p in model.parameters()),
        weights=sum(len(step.theirs) for step in plan.steps),
        dropped=plan.dropped,
        elsewhere=tuple(parts),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )
    write_json(out / "released.json", asdict(made))
    return made


def plan_of(layout: Layout, files: Iterable[str]) -> Plan:
    """What becomes of the names of a release; nothing is read but names.

    Raises:
        CheckpointError: they are not the release's to the last one.
    """
    with torch.device("meta"):
        return match(layout, files, layout.model.build().state_dict())


def load_released(layout: Layout, files: Weights, plan: Plan, *, vocab: int, download: bool = False) -> MLLM:
    """The model of a release, on the CPU.

    Its rows of vocabulary are the file's, or `vocab` where the LLM's embedding is not in the file. It has the type of
    most numbers in the file, or float32 where parts are not in it.

    Raises:
        CheckpointError: a shape that does not fit, or a part whose published weights are not on this machine.
    """
    rows = made_shape(plan, files, "llm.embedding.weight")
    with torch.device("meta"):
        model = layout.model.build(vocab=rows[0] if rows else vocab)
    parts = _parts(layout, plan)
    for name in parts:
        model.get_submodule(name).to_empty(device="cpu")
    load_published(model, parts, download=download)
    load(model, files, plan, dtype=torch.float32 if parts else _dtype(files))
    return model.eval()


def _parts(layout: Layout, plan: Plan) -> list[str]:
    """The parts with weights that are elsewhere: `llm`, `encoders.image`, or the tower inside it."""
    stems = (pattern.removesuffix(".**") for pattern in layout.elsewhere)
    found = (stem for stem in stems if any(name.startswith(f"{stem}.") for name in plan.elsewhere))
    return sorted({"llm" if stem.startswith("llm") else stem for stem in found})


def _dtype(files: Weights) -> torch.dtype:
    """The type of most numbers."""
    counts: Counter[torch.dtype] = Counter()
    for name in files:
        counts[files.dtype(name)] += prod(files.shape(name))
    return max((dtype for dtype in counts if dtype.is_floating_point), key=lambda dtype: counts[dtype])
