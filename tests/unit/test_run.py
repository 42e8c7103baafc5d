"""From a recipe's name to RUN/model: what `quintet train` does around the loop. About 8 s."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import picture_rows
from quintet.data.scenes import World, make_scenes
from quintet.errors import CheckpointError, ConfigError, DataError
from quintet.lab.pretrained import build_model, folder_of
from quintet.lab.recipe import load_recipe
from quintet.lab.run import Job, train
from quintet.model.checkpoint import load_model
from quintet.recipes._scale import at_scale
from quintet.training.loop import Interrupted, Settings
from quintet.values import Media, Node, Sample, Text, Turn

FP32 = Settings(precision="fp32", features="off")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_rows(tmp_path_factory.mktemp("data"), 5)


def job(out: Path, rows: Path, **more: Any) -> Job:
    both = {"pretrain": rows, "instruct": rows}
    return Job(**{"recipe": "llava15", "scale": "tiny", "out": out, "data": both, "settings": FP32} | more)


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "model").iterdir())}


def test_a_run_leaves_what_the_design_says_and_nothing_else(data: Path, tmp_path: Path) -> None:
    results = train(job(tmp_path / "run", data))
    assert list(results) == ["pretrain", "instruct"]
    found = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert found == {
        "recipe.json",
        "metrics.jsonl",
        *(f"stages/{s}/{f}" for s in ("pretrain", "instruct") for f in ("stage.json", "trained.safetensors")),
        *(
            f"model/{f}"
            for f in (
                "config.json",
                "processor.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "encoders.image.safetensors",
                "connectors.image.safetensors",
                "llm.safetensors",
            )
        ),
    }
    facts = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (facts["name"], facts["scale"], facts["seed"], facts["precision"]) == ("llava15", "tiny", 0, "fp32")


def test_equal_jobs_give_equal_files_and_another_seed_does_not(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(job(tmp_path / name, data, settings=replace(FP32, seed=seed)))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_the_second_stage_goes_on_from_the_first(data: Path, tmp_path: Path) -> None:
    """The first stage alone leaves what the whole run's first stage leaves."""
    train(job(tmp_path / "whole", data))
    train(job(tmp_path / "half", data, stages=["pretrain"]))
    name = "stages/pretrain/trained.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "half" / name).read_bytes()


def test_a_stage_that_is_run_by_itself_later_begins_where_the_first_one_ended(data: Path, tmp_path: Path) -> None:
    train(job(tmp_path / "whole", data))
    train(job(tmp_path / "apart", data, stages=["pretrain"]))
    train(job(tmp_path / "apart", data, stages=["instruct"], resume=True))
    assert files(tmp_path / "apart") == files(tmp_path / "whole")


def test_a_finished_run_that_is_resumed_is_the_same_run(data: Path, tmp_path: Path) -> None:
    train(job(tmp_path / "run", data))
    before = files(tmp_path / "run")
    told: list[str] = []
    assert train(job(tmp_path / "run", data, resume=True, note=told.append)) == {}
    assert files(tmp_path / "run") == before
    assert told == ["stage pretrain is finished already", "stage instruct is finished already"]


def test_adapters_are_folded_in_also_when_their_stage_is_resumed_over(data: Path, tmp_path: Path) -> None:
    """RUN/model loads as a plain model, and a second stage may train what carried the adapters."""
    lora = ['stages.pretrain.train={"llm": {"lr": 0.01, "lora": {"rank": 2}}}']
    train(job(tmp_path / "whole", data, sets=lora))
    with pytest.raises(Interrupted):
        # Stops in the first stage that has more steps than one, so twice.
        train(job(tmp_path / "parts", data, sets=lora, settings=replace(FP32, stop_after=1)))
    with pytest.raises(Interrupted):
        train(job(tmp_path / "parts", data, sets=lora, resume=True, settings=replace(FP32, stop_after=1)))
    assert (tmp_path / "parts" / "stages" / "pretrain").is_dir()
    train(job(tmp_path / "parts", data, sets=lora, resume=True))
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    learnt = load_file(tmp_path / "whole" / "stages" / "pretrain" / "trained.safetensors")
    assert all(".lora_" in name for name in learnt)
    assert not any("lora" in name for name in load_model(tmp_path / "whole" / "model").state_dict())


def test_a_folder_with_a_run_is_never_overwritten(data: Path, tmp_path: Path) -> None:
    train(job(tmp_path / "run", data, stages=["pretrain"]))
    with pytest.raises(ConfigError, match="holds a run; go on with --resume"):
        train(job(tmp_path / "run", data))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(job(tmp_path / "other", data))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": replace(FP32, seed=1)}, r"seed: 0 → 1\."),
        ({"sets": ["stages.instruct.batch=2"]}, r"stages\.instruct\.batch: \d+ → 2\."),
        ({"recipe": "llava"}, r"; \d+ more\."),
    ],
    ids=str,
)
def test_a_run_goes_on_only_as_what_it_was(data: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    train(job(tmp_path / "run", data, stages=["pretrain"]))
    with pytest.raises(CheckpointError, match=rf"is another run\. What differs \(there → here\): .*{named}"):
        train(job(tmp_path / "run", data, resume=True, **change))


def test_overrides_are_part_of_the_recipe_that_is_written(data: Path, tmp_path: Path) -> None:
    train(job(tmp_path / "run", data, sets=["stages.instruct.steps=1"]))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 1]
    facts = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert facts["recipe"]["stages"][1]["steps"] == 1


def test_one_file_is_for_the_last_stage_and_scenes_for_the_others(data: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path / "scenes", 60, 0, World())
    train(job(tmp_path / "run", data, data={"": data}, scenes=tmp_path / "scenes"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    own = train(job(tmp_path / "own", data, stages=["instruct"]))
    assert len(rows) == 4
    assert own["instruct"].tokens == sum(row["tokens"] for row in rows if row["stage"] == "instruct")


def test_at_full_scale_a_stage_without_a_file_says_which_it_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published data do not come with the package; no weights are touched before that is said."""
    from quintet.lab import run

    recipe = load_recipe("llava15")[1]
    with pytest.raises(ConfigError, match="--data pretrain=PATH"):
        run.stage_source(Job(recipe="llava15", out=tmp_path, scale="full"), recipe, recipe.stages[0])


def test_weights_that_are_not_here_are_not_fetched_unless_asked() -> None:
    with pytest.raises(CheckpointError, match="pass --download"):
        folder_of("nobody/nothing-of-this-name")


def test_a_model_without_published_weights_follows_its_seed() -> None:
    config = at_scale(load_recipe("llava15")[1], "tiny").model
    one, two, other = (build_model(config, vocab=300, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_more_tokens_than_published_rows_of_the_embedding_are_refused(tmp_path: Path) -> None:
    config = at_scale(load_recipe("llava15")[1], "tiny").model
    published = replace(config, llm=replace(config.llm, source=str(tmp_path), vocab=100))
    with pytest.raises(ConfigError, match="the tokenizer has 300 tokens"):
        build_model(published, vocab=300)


def test_what_was_trained_answers(data: Path, tmp_path: Path) -> None:
    from quintet.serving.engine import Engine
    from quintet.values import Ref

    train(job(tmp_path / "run", data))
    path = data.parent / "pictures" / "1.png"
    asked = Sample(Node((Turn("user", (Media("image", Ref("1.png", path=path)), Text("Which number has this?"))),)))
    assert isinstance(Engine.open(tmp_path / "run").answer([asked], max_tokens=4)[0], str)


# ---- what users of the command line ran into -----------------------------------------------------------------------
def test_a_missing_file_is_found_before_the_first_step_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nope"):
        train(job(tmp_path / "run", tmp_path / "nope.json"))
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_refuses_another_file_of_as_many_rows(data: Path, tmp_path: Path) -> None:
    train(job(tmp_path / "run", data, stages=["pretrain"]))
    other = data.with_name("other.json")
    other.write_text(data.read_text(encoding="utf-8").replace("a", "b"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the data of stage pretrain; the data of stage instruct"):
        train(job(tmp_path / "run", other, resume=True))


def test_resuming_where_no_run_is_says_so(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(replace(job(tmp_path / "run", data, stages=["pretrain"], resume=True), note=said.append))
    assert any("no run in" in text for text in said)


@pytest.mark.parametrize(("setting", "found"), [("steps=0", "steps is 0"), ("epochs=0", "epochs is 0")])
def test_a_stage_without_a_step_is_refused(data: Path, tmp_path: Path, setting: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        train(job(tmp_path / "run", data, sets=[f"stages.instruct.{setting}"]))


# ---- recipes of one's own ----------------------------------------------------------------------------------------
OWN_PART = '''
"""A recipe whose connector is defined beside it."""

from dataclasses import dataclass, replace

from quintet.components.connectors.linear import Linear
from quintet.recipes import llava15


class Twice(Linear):
    """A linear layer, times two."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Linear.Config):
        """Nothing more."""

        def build(self, *, d_in, d_out):
            return Twice(self, d_in=d_in, d_out=d_out)

    def forward(self, features):
        made = super().forward(features)
        return replace(made, values=2 * made.values)


def recipe():
    """LLaVA-1.5 with that."""
    base = llava15.recipe()
    return replace(base, model=replace(base.model, connectors={"image": Twice.Config()}))
'''


def test_a_file_is_run_once_until_it_changes_and_may_not_shadow_a_module(tmp_path: Path) -> None:
    path = tmp_path / "own_recipe_once.py"
    path.write_text(OWN_PART, encoding="utf-8")
    name, one = load_recipe(str(path))
    assert name == "own_recipe_once"
    assert type(one.model.connectors["image"]) is type(load_recipe(str(path))[1].model.connectors["image"])
    path.write_text(OWN_PART.replace("times two", "changed"), encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert type(load_recipe(str(path))[1].model.connectors["image"]) is not type(one.model.connectors["image"])
    shadow = tmp_path / "json.py"
    shadow.write_text(OWN_PART, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"json\.py has the name of a Python module"):
        load_recipe(str(shadow))


def test_a_run_with_a_part_of_ones_own_opens_once_its_recipe_is_named(data: Path, tmp_path: Path) -> None:
    """In processes of their own: this one has met the part."""
    path, run = tmp_path / "own_recipe.py", tmp_path / "run"
    path.write_text(OWN_PART, encoding="utf-8")

    def quintet(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "quintet", *words], capture_output=True, text=True, check=False)

    rows = [word for stage in ("pretrain", "instruct") for word in ("--data", f"{stage}={data}")]
    trained = quintet("train", str(path), "--scale", "tiny", "--out", str(run), *rows)
    assert trained.returncode == 0, trained.stderr
    assert f"--recipe{path}" in "".join(trained.stdout.split())
    ask = ("chat", str(run), "-p", "What do you see?", "--max-tokens", "2")
    blind = quintet(*ask)
    assert blind.returncode != 0
    assert "name its file: --recipe" in " ".join(blind.stderr.split())
    told = quintet(*ask, "--recipe", str(path))
    assert told.returncode == 0, told.stderr


def test_a_run_goes_on_after_its_recipes_paper_was_mended_and_not_after_its_rate_was(
    data: Path, tmp_path: Path
) -> None:
    train(job(tmp_path / "run", data, stages=["pretrain"]))
    place = tmp_path / "run" / "recipe.json"
    facts = json.loads(place.read_text(encoding="utf-8"))
    facts["recipe"]["paper"]["title"] = "Another title"
    place.write_text(json.dumps(facts), encoding="utf-8")
    assert set(train(job(tmp_path / "run", data, resume=True))) == {"instruct"}
    facts["recipe"]["stages"][0]["batch"] = 7
    place.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"stages\.pretrain\.batch: 7 → \d+\."):
        train(job(tmp_path / "run", data, resume=True))
