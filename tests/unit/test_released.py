"""Tables of names of released checkpoints: at full size on the meta device, and what is refused. About 20 s.

`released/NAME.txt` has the names and shapes of a release as its own code and config give them, a shell's braces for
many; the first line says which. Numbers are compared in tests/parity/test_released_{numbers,formulas}.py.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from conftest import byte_tokenizer
from quintet.cli.app import app
from quintet.components.connectors.ldp import Ldp
from quintet.errors import CheckpointError, ConfigError
from quintet.lab.recipe import load_recipe
from quintet.lab.released import plan_of
from quintet.model.checkpoint import load_model
from quintet.model.released.files import Weights
from quintet.model.released.systems import LAYOUTS, layout_of
from quintet.model.released.table import Layout, Rule, load, made_shape, match, released_state

FACTS = Path(__file__).parent / "released"


def spread(pattern: str) -> Iterator[str]:
    """What a shell makes of braces: lists, and ranges with a step.

    >>> list(spread("a.{0..4..2}.{q,k}"))
    ['a.0.q', 'a.0.k', 'a.2.q', 'a.2.k', 'a.4.q', 'a.4.k']
    """
    fixed = re.split(r"\{(.*?)\}", pattern)
    choices: list[list[str]] = []
    for piece in fixed[1::2]:
        if ".." in piece:
            first, last, *step = (int(n) for n in piece.split(".."))
            choices.append([str(n) for n in range(first, last + 1, *step)])
        else:
            choices.append(piece.split(","))
    for chosen in product(*choices):
        yield "".join(a + b for a, b in zip(fixed[::2], (*chosen, ""), strict=True))


def facts(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a release."""
    lines = [line for line in (FACTS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    found: dict[str, tuple[int, ...]] = {}
    for pattern, *sizes in (line.split() for line in lines):
        shapes = dict.fromkeys(spread(pattern), tuple(int(size) for size in sizes))
        assert not shapes.keys() & found.keys(), f"{pattern} is written twice"
        found |= shapes
    return found


def released(name: str) -> Layout:
    """The layout of a file of facts."""
    if name == "mobilevlm":
        model = load_recipe("mobilevlm_v2")[1].model
        return layout_of("mobilevlm_v2", replace(model, connectors={"image": Ldp.Config(version=1)}))
    recipe = {"llava_projector": "llava15"}.get(name, name)
    return layout_of(recipe, load_recipe(recipe)[1].model)


ELSEWHERE = {
    "lavin": {"encoders.image", "llm"},
    "llama_adapter": {"llm"},
    "llava": {"encoders.image"},
    "llava15": {"encoders.image"},
    "llava_projector": {"encoders.image", "llm"},
    "minigpt4": {"encoders.image", "llm"},
    "minigpt_v2": {"encoders.image", "llm"},
    "open_flamingo": {"encoders.image", "llm"},
    "shikra": {"encoders.image"},
}
"""Parts of which weights are not in the file."""

_BUFFER = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(32)}


def test_there_is_a_file_of_facts_for_every_table() -> None:
    assert {path.stem for path in FACTS.glob("*.txt")} == {*LAYOUTS, "mobilevlm", "llava_projector"}


def test_the_document_names_every_table() -> None:
    document = (FACTS.parents[2] / "docs" / "released.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", document, re.MULTILINE) == sorted(LAYOUTS)


@pytest.mark.parametrize("name", sorted([*LAYOUTS, "mobilevlm", "llava_projector"]))
def test_names_and_shapes_of_a_release_are_the_full_models_to_the_last_one(name: str) -> None:
    """Every number of the file has a place, every weight has its numbers, and no two share one."""
    layout = released(name)
    with torch.device("meta"):
        files = {key: torch.empty(shape) for key, shape in facts(name).items()}
        model = layout.model.build()
        plan = match(layout, files, model.state_dict())
        rows = made_shape(plan, files, "llm.embedding.weight")
        if rows and rows[0] != model.llm.vocab:
            model = layout.model.build(vocab=rows[0])
        load(model, files, plan, dtype=torch.float32)
    state = model.state_dict()
    given = [key for step in plan.steps if not step.adds for key in step.ours]
    assert len(given) == len(set(given))
    assert {*given, *plan.elsewhere, *plan.fixed} == state.keys()
    assert {".".join(key.split(".")[: 1 if key.startswith("llm") else 2]) for key in plan.elsewhere} == ELSEWHERE.get(
        name, set()
    )
    used = [key for step in plan.steps for key in step.theirs]
    assert sorted([*used, *plan.dropped]) == sorted(files)
    read = sum(files[key].numel() for step in plan.steps if not step.adds for key in step.theirs)
    # The row of <PAD>; three weights of the LLM in twelve layers, which become copies of the first expert's.
    more = {"open_flamingo": 4096, "moe_llava": -12 * 3 * 5504 * 2048}.get(name, 0)
    assert read - more == sum(state[key].numel() for key in given)


@pytest.mark.parametrize(
    "name", ["cogvlm", "llava", "shikra", "qwen_vl", "minigpt4", "llama_adapter", "llava15", "mplug_owl"]
)
def test_what_has_no_use_is_known_by_name(name: str) -> None:
    dropped = {
        "qwen_vl": {"transformer.visual.attn_pool.pos_embed"},
        "minigpt4": {"t5_proj.weight", "t5_proj.bias", "Qformer.bert.embeddings.position_ids"},
        "llama_adapter": {"layers.0.attention.gate", "layers.1.attention.gate"},
        "mplug_owl": set(),
    }.get(name, _BUFFER)
    assert set(plan_of(released(name), facts(name)).dropped) == dropped


@pytest.mark.parametrize(("name", "size"), [("llava15", 13_518_798_848), ("qwen_vl", 19_313_870_336)])
def test_the_facts_have_as_many_bytes_as_the_published_index_says(name: str, size: int) -> None:
    """`total_size` of liuhaotian/llava-v1.5-7b, and of Qwen/Qwen-VL (that one from memory): two bytes a number.

    The rotary frequencies of LLaVA's file are in float32.
    """
    count = {key: prod(shape) for key, shape in facts(name).items()}
    assert sum(n * (4 if key.endswith("inv_freq") else 2) for key, n in count.items()) == size


def test_of_clip_only_what_is_behind_the_feature_layer_is_dropped() -> None:
    plan = plan_of(released("vila"), facts("vila"))
    tower = "model.vision_tower.vision_tower.vision_model."
    assert len(plan.dropped) == 18
    assert all(name.startswith((f"{tower}encoder.layers.23.", f"{tower}post_layernorm.")) for name in plan.dropped)


def test_vilas_release_is_the_form_with_two_layers() -> None:
    """The recipe is the paper's, with one; its names do not fit."""
    paper = load_recipe("vila")[1].model
    with pytest.raises(CheckpointError, match=r"lacks model\.mm_projector\.bias"):
        plan_of(layout_of("llava", paper), facts("vila"))


# ---- what is refused ---------------------------------------------------------------------------------------------
def refused(name: str, files: dict[str, tuple[int, ...]]) -> str:
    layout = released(name)
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in files.items()}
        model = layout.model.build()
    with pytest.raises(CheckpointError) as raised:  # noqa: PT012 names or shapes, whichever is wrong
        plan = match(layout, tensors, model.state_dict())
        load(model, tensors, plan, dtype=torch.float32)
    return str(raised.value)


def test_an_adapter_that_is_not_there_is_missed() -> None:
    """Nothing else would tell: what it is added to is elsewhere."""
    files = {k: v for k, v in facts("minigpt_v2").items() if "layers.7." not in k or "q_proj" not in k}
    assert "lacks the adapter of our llm.blocks.7.attn.q_proj.weight" in refused("minigpt_v2", files)


def test_every_fault_is_told_at_once_and_by_name() -> None:
    files = facts("llava15")
    files["model.mm_projector.1.weight"] = files.pop("model.mm_projector.2.weight")
    del files["model.norm.weight"]
    said = refused("llava15", files)
    assert "has names that are not of this release model.mm_projector.1.weight;" in said
    assert "model.mm_projector.2.weight (our connectors.image.project.layers.1.weight)" in said
    assert "model.norm.weight (our llm.norm.weight)" in said


def test_a_part_is_in_the_file_or_not_but_never_in_pieces() -> None:
    """One layer of the tower is missing: CLIP's own weights must not fill the gap."""
    files = {name: shape for name, shape in facts("vila").items() if ".encoder.layers.7." not in name}
    assert "encoder.layers.7.mlp.fc1.bias (our encoders.image.layers.7.mlp.fc1.bias)" in refused("vila", files)


def test_a_tower_that_was_trained_is_not_taken_from_elsewhere() -> None:
    files = {name: shape for name, shape in facts("sharegpt4v").items() if not name.startswith("vision_model.")}
    assert "(our encoders.image.cls)" in refused("sharegpt4v", files)


def test_one_expert_too_few_is_told() -> None:
    files = facts("moe_llava")
    lost = "transformer.h.4.mlp.deepspeed_moe.experts.deepspeed_experts.3.w2.weight"
    del files[lost]
    assert f"lacks {lost}" in refused("moe_llava", files)


def test_another_shape_is_told_with_both() -> None:
    wide, narrow = facts("qwen_vl"), facts("qwen_vl")
    wide["transformer.visual.proj"] = (4096, 4097)
    said = refused("qwen_vl", wide)
    assert "transformer.visual.proj [4096, 4097] would be [4097, 4096]" in said
    assert "connectors.image.project.weight [4096, 4096]" in said
    narrow["transformer.visual.transformer.resblocks.5.attn.in_proj.weight"] = (4991, 1664)
    assert "resblocks.5.attn.in_proj.weight [4991, 1664] cannot become" in refused("qwen_vl", narrow)


def test_two_weights_for_one_place_are_told() -> None:
    layout = Layout(released("llava").model, (Rule("a.**", "llm.norm.**"), Rule("b.**", "llm.norm.**")), ("**",))
    with pytest.raises(CheckpointError, match=r"has twice llm\.norm\.weight"):
        match(layout, ["a.weight", "b.weight"], ["llm.norm.weight"])


def test_a_recipe_without_a_table_is_told_which_have_one() -> None:
    with pytest.raises(ConfigError, match=r"no table of names for a release of 'fuyu'.*cogvlm"):
        layout_of("fuyu", load_recipe("fuyu")[1].model)


# ---- files -------------------------------------------------------------------------------------------------------
def weights(*names: str) -> dict[str, Tensor]:
    return {name: torch.arange(4.0) + n for n, name in enumerate(names)}


def test_shards_of_both_kinds_are_read_as_one(tmp_path: Path) -> None:
    for kind, save in (("safetensors", save_file), ("bin", torch.save)):
        folder = tmp_path / kind
        folder.mkdir()
        save(weights("a"), folder / f"1.{kind}")
        save(weights("b", "module.c"), folder / f"2.{kind}")
        (folder / "training_args.bin").write_bytes(b"anything")
        found = Weights(folder)
        assert sorted(found) == ["a", "b", "c"]
        assert found["c"].tolist() == [1.0, 2.0, 3.0, 4.0]
        assert (found.shape("c"), found.dtype("c")) == ((4,), torch.float32)


@pytest.mark.parametrize("key", ["model", "model_state_dict"])
def test_a_training_loops_file_is_read_for_its_model(tmp_path: Path, key: str) -> None:
    torch.save({key: weights("a"), "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert list(Weights(tmp_path)) == ["a"]


class Trap:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("sprung"),))


def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Trap()}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="no code of a file is run"):
        Weights(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors"):
        Weights(tmp_path)
    save_file(weights("a"), tmp_path / "1.safetensors")
    save_file(weights("a"), tmp_path / "2.safetensors")
    with pytest.raises(CheckpointError, match="a is in two files"):
        Weights(tmp_path)
    (tmp_path / "2.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        Weights(tmp_path)


# ---- the command -------------------------------------------------------------------------------------------------
RECIPE = """
from dataclasses import replace
from quintet.lab.recipe import load_recipe
from quintet.recipes._scale import at_scale

def recipe():
    return at_scale(load_recipe("llava15")[1], "tiny")
"""


def test_the_command_makes_a_run_of_a_release(tmp_path: Path) -> None:
    """A recipe of one's own by the name of the system: LLaVA-1.5, tiny."""
    (tmp_path / "llava15.py").write_text(RECIPE)
    layout = layout_of("llava15", load_recipe(str(tmp_path / "llava15.py"))[1].model)
    torch.manual_seed(0)
    model = layout.model.build(vocab=600).to(torch.bfloat16)
    release = tmp_path / "release"
    release.mkdir()
    theirs = {name: value.clone() for name, value in released_state(layout, model.state_dict()).items()}
    save_file(theirs, release / "model.safetensors")
    byte_tokenizer().save(release)
    asked = ["import", str(release), "--as", str(tmp_path / "llava15.py"), "--out"]
    done = CliRunner().invoke(app, [*asked, str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert f"llava15: {sum(p.numel() for p in model.parameters()):,} parameters (bfloat16)" in done.output
    back = load_model(tmp_path / "run" / "model")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    told = json.loads((tmp_path / "run" / "released.json").read_text())
    assert (told["recipe"], told["source"], told["elsewhere"]) == ("llava15", "release", [])
    said = CliRunner().invoke(app, ["chat", str(tmp_path / "run"), "-p", "Hello?", "--max-tokens", "2"])
    assert said.exit_code == 0, said.output
    other = CliRunner().invoke(app, [*asked, str(tmp_path / "other"), "--template", "llava"])
    assert other.exit_code == 0, other.output
    assert f"as in llava (llava_v0); as --template says, not as in {tmp_path / 'llava15.py'}" in other.stdout
    assert "warning" not in other.stderr
    again = CliRunner().invoke(app, [*asked, str(tmp_path / "run")])
    assert again.exit_code == 1
    assert "is not empty" in again.output
