"""Folders that are damaged and comparisons that would prove nothing: each is refused by name, none with a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_blip2_retrieval
import test_fuyu
import test_llava_next
import torch
from llava_fixtures import composition, facts_of, published, tokenizer_of_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.experts.published import _load
from quintet.errors import CheckpointError, ConfigError
from quintet.model.blip2_retrieval import export_retrieval, import_retrieval
from quintet.model.convert import export_model, import_model, import_run, spoken_as
from quintet.model.parity import Parity, verify
from quintet.model.released.files import Weights


def next_folder(folder: Path) -> Path:
    test_llava_next.published().save_pretrained(folder)
    return folder


def weight_of(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file(state | {name: change(state[name])}, path, metadata={"format": "pt"})


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- numbers that are none ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("end", "bad"),
    [
        ("layers.1.mlp.up_proj.weight", torch.nan),
        ("linear_1.bias", torch.inf),
        ("encoder.layers.0.mlp.fc1.weight", torch.nan),
        ("image_newline", torch.nan),
    ],
)
def test_weights_that_are_not_finite_are_named(end: str, bad: float, tmp_path: Path) -> None:
    folder = next_folder(tmp_path / "theirs")
    [name] = [name for name in load_file(folder / "model.safetensors") if name.endswith(end)]
    weight_of(folder, name, lambda value: value * bad)
    with pytest.raises(CheckpointError, match=f"{end} are NaN or infinite"):
        import_run(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_a_release_that_are_not_finite_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan, torch.nan])}, tmp_path / "model.safetensors")
    torch.save({"c": torch.tensor([torch.inf])}, tmp_path / "c.bin")
    weights = Weights(tmp_path)
    assert weights["a"].tolist() == [1.0, 1.0]
    with pytest.raises(CheckpointError, match="2 of the 3 numbers of b are NaN"):
        weights["b"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of the 1 numbers of c are NaN"):
        Weights(tmp_path)["c"]


def test_a_model_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    model = composition(CLIP_L_336.tiny())
    with torch.no_grad():
        model.get_parameter("llm.norm.weight")[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"the model: 1 of the \d+ numbers of language_model.model.norm.weight"):
        export_model(model, tmp_path / "out", facts_of(64))
    assert not (tmp_path / "out").exists()


def test_a_retrieval_model_that_is_not_finite_goes_neither_in_nor_out(tmp_path: Path) -> None:
    test_blip2_retrieval.published(tmp_path / "theirs")
    ours: Any = import_retrieval(tmp_path / "theirs")
    with torch.no_grad():
        ours.connectors["image"].captions.itm.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"itm_head\.bias are NaN"):
        export_retrieval(ours, tmp_path / "out")
    weight_of(tmp_path / "theirs", "text_projection.weight", lambda value: value * torch.nan)
    with pytest.raises(CheckpointError, match=r"text_projection\.weight are NaN"):
        import_run(tmp_path / "theirs", tmp_path / "run")


# ---- comparisons that prove nothing ------------------------------------------------------------------------------
def test_a_parity_by_hand() -> None:
    """0.01 of 200 is within 1e-4 of the largest; what is not a number, all 0, or blind to pictures proves nothing."""
    place = Path("ck")
    good = Parity(0.01, 200.0, 3.0, "float32")
    assert good.proved(place) is good
    for numbers, message in {
        (0.03, 200.0, 3.0): "differ by 0.03",
        (torch.nan, 200.0, 3.0): "not finite",
        (0.0, torch.nan, 3.0): "not finite",
        (0.0, torch.inf, torch.nan): "not finite",
        (0.0, 0.0, 0.0): "all logits are 0",
        (0.0, 200.0, 0.0): "no logit changes with the pictures",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            Parity(*numbers, "float32").proved(place)


def test_logits_that_are_not_finite_are_not_taken_for_equal(tmp_path: Path) -> None:
    """The maximum of Python and a NaN is the other number."""
    folder = next_folder(tmp_path)
    ours, facts = import_model(folder)
    with torch.no_grad():
        ours.get_parameter("llm.norm.weight").fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        verify(ours, folder, facts)


@pytest.mark.parametrize(
    ("name", "message"),
    [("language_model.lm_head.weight", "all logits are 0"), ("linear_2", "no logit changes with the pictures")],
)
def test_a_part_of_zeros_is_not_taken_for_equal(name: str, message: str, tmp_path: Path) -> None:
    folder = next_folder(tmp_path / "theirs")
    for own in load_file(folder / "model.safetensors"):
        if name in own or (name.endswith("lm_head.weight") and own.endswith("lm_head.weight")):
            weight_of(folder, own, torch.zeros_like)
    with pytest.raises(CheckpointError, match=message):
        import_run(folder, tmp_path / "run")


# ---- files that are damaged --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[1]"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"added_tokens": []}'),
        ("tokenizer_config.json", "[1]"),
    ],
)
def test_a_damaged_tokenizer_is_one_error(file: str, content: str, tmp_path: Path) -> None:
    folder = next_folder(tmp_path / "theirs")
    tokenizer_of_bytes(folder)
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=r"theirs: no tokenizer can be read there .*copy the checkpoint's"):
        import_run(folder, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"cannot be loaded \(\w+: .*name a local folder"):
        _load(str(folder), AutoTokenizer, AutoModel)


def test_a_config_that_is_no_object_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    for command in (import_model, spoken_as):
        with pytest.raises(CheckpointError, match="holds a list; expected an object of settings with a model_type"):
            command(tmp_path)


def test_another_model_type_is_told_by_the_part_that_does_not_fit(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    edited(tmp_path, model_type="fuyu", image_token_id=3)
    with pytest.raises(ConfigError, match="text_config is of model_type 'llama'; Fuyu's is 'persimmon'") as caught:
        import_model(tmp_path)
    assert "through Quintet" not in str(caught.value)


def test_canvases_and_unknown_weights_of_llava_next_are_told_as_its_own(tmp_path: Path) -> None:
    folder = next_folder(tmp_path)
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"odd.weight": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"none of LlavaNextForConditionalGeneration's: odd\.weight"):
        import_model(folder)
    edited(folder, image_grid_pinpoints=[])
    with pytest.raises(ConfigError, match="image_grid_pinpoints is empty; expected at least one canvas"):
        import_model(folder)


@pytest.mark.filterwarnings("error")
def test_a_patch_of_no_pixels_is_refused(tmp_path: Path) -> None:
    folder = next_folder(tmp_path / "next")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edited(folder, vision_config=vision | {"patch_size": 0})
    test_fuyu.published(tmp_path / "fuyu")
    edited(tmp_path / "fuyu", patch_size=0)
    for source in (folder, tmp_path / "fuyu"):
        with pytest.raises(ConfigError, match="patch is 0"):
            import_model(source)
