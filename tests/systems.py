"""Recipes as tests take them, whole on the meta device or tiny; and samples about pictures drawn on the spot."""

import io
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from conftest import picture
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.optim import set_trainable
from quintet.values import Batch, Features, Media, Node, Ref, Sample, Text, Tokens, Turn


# ---- models ------------------------------------------------------------------------------------------------------
def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


def full(name: str) -> tuple[Recipe, MLLM]:
    """A recipe and its model as published, without memory."""
    recipe = load_recipe(name)[1]
    with torch.device("meta"):
        return recipe, recipe.model.build()


def begun(recipe: Recipe) -> tuple[MLLM, Processor]:
    """The model of a recipe as training finds it, and its processor."""
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
    added = [tokenizer.id(token) for token in recipe.added_tokens]
    model = build_model(recipe.model, vocab=tokenizer.vocab, added=added).eval()
    return model, Processor(tokenizer, recipe.template, recipe.model)


def tiny(recipe: Recipe | str) -> tuple[Recipe, MLLM, Processor]:
    """A recipe at the tiny scale, its model and its processor."""
    small = at_scale(load_recipe(recipe)[1] if isinstance(recipe, str) else recipe, "tiny")
    return small, *begun(small)


@torch.no_grad()
def enlarge(model: nn.Module) -> None:
    """Draws weights larger than they are initialised, so that whatever is read shows."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)


def trained(recipe: Recipe, model: MLLM) -> list[set[str]]:
    """By stage: the parts of which something learns."""
    found = []
    for stage in recipe.stages:
        set_trainable(model, stage.train)
        found.append({n for n, m in model.parts().items() if any(p.requires_grad for p in m.parameters())})
    return found


class Small:
    """A tiny model of a recipe that spells, packs and reads samples; its weights are enlarged."""

    def __init__(self, recipe: Recipe | str, *, stage: int | None = None) -> None:
        """With the template of the finished model, or that of a stage."""
        self.recipe, self.model, made = tiny(recipe)
        self.processor = made if stage is None else replace(made, template=self.recipe.stages[stage].template)
        enlarge(self.model)

    def spelt(self, sample: Sample, *, stage: int | None = None) -> tuple[Tokens, str]:
        """Tokens, and what they say; a run of picture columns is <n>."""
        template = self.processor.template if stage is None else self.recipe.stages[stage].template
        tokens = replace(self.processor, template=template).tokens(sample)
        said, at = "", 0
        for item in tokens.items:
            said += self.text(tokens.ids[at : item.start]) + f"<{item.columns}>"
            at = item.start + item.columns
        return tokens, said + self.text(tokens.ids[at:])

    def text(self, ids: Tensor) -> str:
        return self.processor.tokenizer.decode(ids.tolist(), keep_special=True)

    def batch(self, *rows: Sample | list[Sample]) -> Batch:
        """A row for each; the samples of a list are packed into one."""
        packed = [row if isinstance(row, list) else [row] for row in rows]
        spelt = [[self.processor.tokens(sample) for sample in row] for row in packed]
        items = [item for row in spelt for tokens in row for item in tokens.items]
        media = {n: Loaded(load_image(item.ref, self.processor.spec(item.kind))) for n, item in enumerate(items)}
        return collate(spelt, media, pad=self.processor.tokenizer.pad_id)

    def features(self, batch: Batch) -> Features:
        """What reaches the LLM of the pictures."""
        with self.model.inference():
            return self.model._connect("image", self.model.encode("image", batch), batch)


# ---- samples -----------------------------------------------------------------------------------------------------
def png(image: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def shown(number: int = 0, *, height: int = 32, width: int = 32) -> Media:
    """The picture of this number."""
    return Media("image", Ref(f"{number}.png", data=png(picture(number, height=height, width=width))))


def user(*parts: str | Media) -> Turn:
    return Turn("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


def says(text: str) -> Turn:
    return Turn("assistant", (Text(text),))


def asked(question: str = "What is it?", answer: str = "A circle.", *, number: int = 0) -> Sample:
    """The picture of this number, a question and its answer."""
    return Sample(Node((user(shown(number), question), says(answer))))
