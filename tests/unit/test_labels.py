"""What parts are called in listings: names of the papers, and no cell that breaks inside a word. About 5 s."""

import re

import pytest
from typer.testing import CliRunner

from quintet.cli import screen
from quintet.cli.app import app
from quintet.components.encoders.pixels import Pixels
from quintet.components.encoders.presets import CLIP_L, SIGLIP_SO400M_384
from quintet.components.encoders.tiles import Tiles
from quintet.lab.labels import KINDS, WEIGHTS, label
from quintet.lab.listing import anatomy, listing
from quintet.lab.parts import parts
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.recipes import frozen_lm, llava_next, multi_encoder, pali_x


def test_a_wrapper_names_what_it_wraps_and_an_unusual_size_is_said() -> None:
    assert label(llava_next.recipe().model.encoders["image"]) == "CLIP ViT-L/14-336 in tiles"
    assert label(multi_encoder.recipe().model.encoders["image"]) == ("DINOv2 ViT-L/14 at 384 px + SigLIP SO400M/14-384")
    assert label(pali_x.recipe().model.encoders["image"]) == "ViT-22B/14 at 756 px"
    assert label(pali_x.recipe().model.llm) == "UL2 32B"
    assert label(Tiles.Config(encoder=SIGLIP_SO400M_384)) == "SigLIP SO400M/14-384 in tiles"
    assert label(frozen_lm.recipe().model.connectors["image"]) == "linear, 2 tokens"


def test_no_published_weights_of_a_recipe_are_called_by_their_file() -> None:
    """A file's name is that of a whole model where only its encoder is taken (`blip2-opt-2.7b`)."""
    for name in recipe_names():
        model = load_recipe(name)[1].model
        for config in (*model.encoders.values(), *(e for each in model.experts.values() for e in each.values())):
            source = getattr(config, "source", "")
            assert not source or source in WEIGHTS, f"{name}: name {source} in quintet/lab/labels.py"
        source = getattr(model.llm, "source", None)
        assert not source or source in WEIGHTS, f"{name}: name {source} in quintet/lab/labels.py"


def test_kinds_are_of_parts_that_exist_and_a_part_without_a_name_is_its_class() -> None:
    found = parts()
    assert KINDS.keys() <= {part.name for part in found}
    used = {p.name for p in found if p.used_by and p.role in ("encoder", "connector", "fusion")}
    assert used - KINDS.keys() == {"Vision"}, "called by its weights"
    assert label(CLIP_L) == "CLIP ViT-L/14"
    assert label(type("Other", (Pixels.Config,), {"__qualname__": "Other.Config"})()) == "Other"  # pyright: ignore


@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_listing_breaks_no_word_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_PIPE", width)
    shown = CliRunner().invoke(app, ["recipes"])
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.output.splitlines())) <= width
    words = set(re.split(r"\s+|, ", shown.output))
    for entry in listing():
        for cell in (entry.name, *anatomy(entry)):
            assert {word.rstrip(",") for word in cell.split()} <= {word.rstrip(",") for word in words}, cell
