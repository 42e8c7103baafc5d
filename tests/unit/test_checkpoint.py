"""A model as a folder: whole or not at all, equal for equal weights, and what is wrong with it is named. About 3 s."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.llms.decoder import Decoder
from quintet.errors import CheckpointError
from quintet.model.checkpoint import load_model, read_json, replace_folder, save_model, write_json
from quintet.model.mllm import MLLM

CONFIG = MLLM.Config(
    encoders={"image": CLIP_L_336.tiny()},
    connectors={"image": Mlp.Config(depth=1)},
    llm=Decoder.Config(vocab=30, dim=16, depth=1, heads=2, kv_heads=1, ffn=16, tie_head=True),
)


def built(seed: int = 0) -> MLLM:
    torch.manual_seed(seed)
    return CONFIG.build()


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_every_weight_comes_back_as_it_was(tmp_path: Path) -> None:
    model = built()
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    assert back.config == model.config
    mine, theirs = model.state_dict(), back.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_part_is_a_file(tmp_path: Path) -> None:
    save_model(built(), tmp_path)
    names = {"config.json", "encoders.image.safetensors", "connectors.image.safetensors", "llm.safetensors"}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_equal_weights_are_equal_files_and_others_are_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_model(built(seed), tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_a_widened_vocabulary_comes_back_widened(tmp_path: Path) -> None:
    save_model(CONFIG.build(vocab=33), tmp_path)
    assert load_model(tmp_path).llm.vocab == 33


def test_a_model_in_low_precision_stays_in_it(tmp_path: Path) -> None:
    save_model(built().to(torch.bfloat16), tmp_path)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.bfloat16}


def spoil(folder: Path, name: str, how: str) -> None:
    path = folder / name
    match how:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-20])
        case "fewer" | "more" | "shape":
            tensors = load_file(path)
            first = sorted(tensors)[0]
            value = tensors.pop(first)
            if how != "fewer":
                tensors[first] = value if how == "more" else value[..., :1].clone()
            if how == "more":
                tensors["stray"] = torch.zeros(1)
            save_file(tensors, path)
        case _:
            path.write_text(how)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("llm.safetensors", "gone", "does not exist; the part 'llm' needs it"),
        ("llm.safetensors", "cut", "is damaged"),
        ("llm.safetensors", "fewer", r"does not fit 'llm': missing \['blocks.0.attend_norm.weight'\], unexpected \[\]"),
        (
            "connectors.image.safetensors",
            "more",
            r"does not fit 'connectors.image': missing \[\], unexpected \['stray'\]",
        ),
        ("connectors.image.safetensors", "shape", r"project.layers.0.bias: \[1\] for \[16\]"),
        ("config.json", "gone", "does not exist"),
        ("config.json", "{", "is no JSON"),
        ("config.json", "[]", "is not a model of format 1"),
        ("config.json", '{"format": 2}', "is not a model of format 1"),
        ("config.json", '{"format": 1, "model": {"type": "quintet.no:No"}, "vocab": 3}', "no module 'quintet.no'"),
        ("config.json", '{"format": 1}', "config.json has no 'model'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, name: str, how: str, message: str) -> None:
    save_model(built(), tmp_path)
    spoil(tmp_path, name, how)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_config_that_was_changed_by_hand_does_not_load_other_weights(tmp_path: Path) -> None:
    save_model(built(), tmp_path)
    data = read_json(tmp_path / "config.json")
    data["model"] = replace(CONFIG, connectors={"image": Mlp.Config(depth=2)}).to_json()
    write_json(tmp_path / "config.json", data)
    with pytest.raises(CheckpointError, match=r"project.layers.1"):
        load_model(tmp_path)


def test_json_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": 1})
    write_json(tmp_path / "a.json", {"é": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": 2}


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """Also where a kill left an older one lying about."""
    for name in ("place", "aside", ".place.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "aside", tmp_path / "place")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["place", "place/aside"]
