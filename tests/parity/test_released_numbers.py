"""Released layouts by numbers: what a release holds comes back to the bit, whole or on the published parts.

What the releases compute with their fused tensors is compared in tests/parity/test_released_formulas.py.
"""

from pathlib import Path

import pytest
import torch
from released_fixtures import VOCAB, batch, logits, publish, random_state, small, taken
from safetensors.torch import save_file

from quintet.model.released.systems import layout_of
from quintet.model.released.table import released_state

WHOLE = ("cogvlm", "ferret", "llava15", "mobilevlm_v2", "moe_llava", "mplug_owl", "qwen_vl", "sharegpt4v", "vila")


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_release_comes_back_with_its_weights_and_logits(name: str, tmp_path: Path) -> None:
    recipe = small(name)
    layout = layout_of(name, recipe.model)
    model = layout.model.build(vocab=VOCAB).eval()
    model.load_state_dict(random_state(model))
    state = model.state_dict()
    theirs = {key: value.clone().contiguous() for key, value in released_state(layout, state).items()}
    half = sorted(theirs)[: len(theirs) // 2]
    save_file({key: theirs.pop(key) for key in half}, tmp_path / "model-00001-of-00002.safetensors")
    save_file(theirs, tmp_path / "model-00002-of-00002.safetensors")
    back = taken(layout, tmp_path)
    assert back.config == layout.model
    # What experts were made of is read nowhere, and in no file.
    unread = {f"llm.blocks.{n}.mlp" for n in range(0, model.llm.depth, 2)} if name == "moe_llava" else set()
    same = {key: value for key, value in state.items() if not any(key.startswith(part) for part in unread)}
    assert all(torch.equal(back.state_dict()[key], value) for key, value in same.items())
    made = batch(recipe, model)
    assert torch.equal(logits(back, made), logits(model, made))


PARTS = ("llama_adapter", "llava", "minigpt4", "open_flamingo", "shikra")


@pytest.mark.parametrize("name", PARTS)
def test_a_release_of_some_parts_stands_on_the_published_ones(name: str, tmp_path: Path) -> None:
    """A .pth as a training loop saves it; the LLM and the encoder lie where the hub puts them."""
    recipe = small(name)
    layout = layout_of(name, recipe.model)
    model = layout.model.build(vocab=VOCAB).eval()
    model.load_state_dict(random_state(model))
    theirs = released_state(layout, model.state_dict())
    layout = publish(layout, model, tmp_path)
    (tmp_path / "release").mkdir()
    trained = {key: value for key, value in theirs.items() if not key.startswith("model.vision_tower.")}
    torch.save({"model": trained, "epoch": 1}, tmp_path / "release" / "checkpoint.pth")
    back = taken(layout, tmp_path / "release")
    assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items())
    made = batch(recipe, model)
    assert torch.equal(logits(back, made), logits(model, made))
