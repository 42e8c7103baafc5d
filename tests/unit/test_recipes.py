"""Every recipe, discovered: it loads, builds at full size without memory, and has the paper's numbers. About 5 s."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.components.encoders.convnext import ConvNeXt
from quintet.components.encoders.presets import CLIP_L, OPENCLIP_BIGG, OPENCLIP_CONVNEXT_L
from quintet.components.encoders.vision import Vision
from quintet.data.template import Template
from quintet.errors import ConfigError, QuintetError
from quintet.lab.recipe import load_recipe, recipe_names, trains_as
from quintet.lab.show import Check, checks_of
from quintet.model.mllm import MLLM
from quintet.recipes import llava15
from quintet.recipes._figures import ENCODERS, arithmetic, printed
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import ALIGNMENT_RATE, SCALES, STARTER_RATES, TRANSFORMER_RATE, at_scale
from quintet.training.optim import set_trainable
from quintet.training.stage import Rate

NAMES = recipe_names()


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(params=NAMES, scope="module")
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(request.param)[1]


@pytest.fixture(scope="module")
def full(recipe: Recipe) -> MLLM:
    with torch.device("meta"):
        return recipe.build()


def test_the_spine_has_its_two_systems() -> None:
    assert {"llava", "llava15"} <= set(NAMES)


def checks(recipe: Recipe, full: MLLM) -> list[Check]:
    parts = {part: count(module) for part, module in full.parts().items()}
    trained: dict[str, int] = {}
    for stage in recipe.stages:
        set_trainable(full, stage.train)
        trained[stage.name] = sum(p.numel() for p in full.parameters() if p.requires_grad)
        full.fold()
    tokens = {kind: recipe.model.layout(kind, recipe.model.spec(kind).size).count for kind in recipe.model.encoders}
    return checks_of(recipe, parts=parts, trained=trained, tokens=tokens)


def test_figures_are_ours_within_a_hundredth_or_the_recipe_says_why_not(recipe: Recipe, full: MLLM) -> None:
    assert recipe.paper.published or recipe.paper.derived, "a recipe is held against something"
    for check in checks(recipe, full):
        assert check.equal or (check.kind == "printed" and check.why), check


def test_no_reason_is_given_for_what_does_not_differ(recipe: Recipe, full: MLLM) -> None:
    reasons = set(recipe.paper.differs.values())
    assert {check.why for check in checks(recipe, full) if not check.equal} >= reasons


@pytest.mark.parametrize(
    ("name", "part", "figure"),
    [
        ("minigpt4", "connectors.image.project", "3.15 M"),
        ("llama_adapter", "fusion.prompts", "1.2 M"),
        ("flamingo", "connectors.image", "194 M"),
        ("flamingo", "fusion", "1.6 B"),
        ("qwen_vl", "encoders.image", "1.9 B"),
        ("qwen_vl", "connectors.image", "0.08 B"),
        ("qwen_vl", "llm", "7.7 B"),
    ],
)
def test_a_printed_figure_is_held_as_it_is_printed(name: str, part: str, figure: str) -> None:
    assert load_recipe(name)[1].paper.published[part] == figure


@pytest.mark.parametrize(
    ("encoder", "projection"),
    [
        (CLIP_L.at(layer=-1), 1024 * 768),
        (replace(OPENCLIP_CONVNEXT_L, norm=True), 1536 * 768),
        (OPENCLIP_BIGG.at(layer=-1), 1664 * 1280),
    ],
)
def test_whole_encoders_are_as_large_as_in_the_surveys_table(
    encoder: Vision.Config | ConvNeXt.Config, projection: int
) -> None:
    with torch.device("meta"):
        found = count(encoder.build()) + projection
    value, half = printed(ENCODERS[encoder.source])
    # The class of the norms behind the last layer: two of them, of which we build one.
    assert abs(found - value) <= half + 2 * encoder.dim


@pytest.mark.parametrize("figure", ["about 3 M", "3.15M", "3 million"])
def test_what_is_no_figure_is_refused(figure: str) -> None:
    paper = load_recipe("llava")[1].paper
    with pytest.raises(ConfigError, match="is no printed figure"):
        replace(paper, published={"llm": figure})
    with pytest.raises(ConfigError, match="cannot be computed"):
        replace(paper, derived={"llm": f"2 / {figure}"})
    with pytest.raises(ConfigError, match="differs from nothing that is printed"):
        replace(paper, differs={"llm": "it is larger"})


def test_tokens_are_those_that_the_paper_gives(recipe: Recipe) -> None:
    assert set(recipe.paper.tokens) == set(recipe.model.encoders)
    for kind, published in recipe.paper.tokens.items():
        assert recipe.model.layout(kind, recipe.model.spec(kind).size).count == published


def test_what_every_stage_trains_is_there(recipe: Recipe, full: MLLM) -> None:
    for stage in recipe.stages:
        found = set_trainable(full, stage.train)
        learnt = sum(p.numel() for p in full.parameters() if p.requires_grad)
        whole = [part for part, rate in found.items() if rate.lora is None and rate.upper == 1]
        in_part = sum(
            p.numel() for part in found.keys() - set(whole) for p in full.parts()[part].parameters() if p.requires_grad
        )
        assert learnt == sum(count(full.parts()[part]) for part in whole) + in_part > 0
        for part in found.keys() - set(whole):
            assert (
                0
                < sum(p.numel() for p in full.parts()[part].parameters() if p.requires_grad)
                < count(full.parts()[part])
            )
        full.fold()


def test_the_published_numbers_of_the_two_llavas() -> None:
    """4096 × 1024 + 4096, and with a second layer 4096 × 4096 + 4096 more; (224 / 14)² and (336 / 14)² patches."""
    one, two = (load_recipe(name)[1].paper for name in ("llava", "llava15"))
    (first,), (second,) = (list(map(arithmetic, paper.derived.values())) for paper in (one, two))
    assert first == 4096 * 1024 + 4096
    assert second == 4096 * 1024 + 4096 + 4096 * 4096 + 4096
    assert (one.tokens, two.tokens) == ({"image": 16**2}, {"image": 24**2})


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_swaps_parts_and_amounts_and_never_the_structure(recipe: Recipe, scale: str) -> None:
    small = at_scale(recipe, scale)
    sized = {k: c if scale == "full" else getattr(c, scale)() for k, c in recipe.model.connectors.items()}
    assert small.model.connectors == sized
    assert {k: type(c) for k, c in sized.items()} == {k: type(c) for k, c in recipe.model.connectors.items()}
    assert type(small.model.fusion) is type(recipe.model.fusion)
    assert small.model.encoders.keys() == recipe.model.encoders.keys()
    assert small.paper == recipe.paper
    before = () if scale == "full" else recipe.before
    assert small.before == recipe.before if scale == "full" else not small.before
    for mine, theirs in zip(small.stages, (*before, *recipe.stages), strict=True):
        # A grid of regions has a size, as a connector does: that of the pictures.
        regions = theirs.template.regions.starter() if scale == "starter" else theirs.template.regions
        # What stands before an answer is of the starter LLM's spelling: a test of its own says where.
        answer = mine.template.answer if scale == "starter" else theirs.template.answer
        assert mine.template == replace(theirs.template, regions=regions, answer=answer)
        assert (mine.name, mine.data, mine.objective) == (theirs.name, theirs.data, theirs.objective)
        # A frozen LLM of the hub knows how an answer ends in its own template, the starter's learns that one token.
        learns = (
            {"tokens"} if (recipe.paper.arxiv, scale, mine.name) == ("2308.12966", "starter", "pretrain") else set()
        )
        assert mine.train.keys() == theirs.train.keys() | learns
        assert [mine.train[part].lora for part in theirs.train] == [r.lora for r in theirs.train.values()]


def test_a_recipe_may_take_less_of_the_starter_scale_s_amounts_and_nothing_else_changes() -> None:
    recipe = load_recipe("llava15")[1]
    whole, part = (at_scale(replace(recipe, starter=share), "starter") for share in (1.0, 0.5))
    assert [stage.epochs for stage in whole.stages] == [1.0, 1.0]
    assert [stage.epochs for stage in part.stages] == [0.5, 0.5]
    assert replace(part, starter=1.0, stages=whole.stages) == whole
    assert at_scale(replace(recipe, starter=0.5), "full").stages == recipe.stages


def test_a_recipe_may_give_one_stage_more_of_the_starter_scale_s_amounts_than_another() -> None:
    recipe = load_recipe("llava15")[1]
    first, second = (stage.name for stage in recipe.stages)
    uneven = replace(recipe, starter=2.0, starter_shares={first: 3})
    assert [stage.epochs for stage in at_scale(uneven, "starter").stages] == [3.0, 1.0]
    assert at_scale(uneven, "full").stages == recipe.stages
    with pytest.raises(ConfigError, match=f"'{first}s', which is no stage; did you mean '{first}'"):
        replace(recipe, starter_shares={f"{first}s": 3})
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"has {wrong} for '{second}'; a stage's share is a number over 0"):
            replace(recipe, starter_shares={second: wrong})
        with pytest.raises(ConfigError, match=f"has {wrong} for 'connectors'; a rate is a number over 0"):
            replace(recipe, starter_rates={"connectors": wrong})
    with pytest.raises(ConfigError, match="'conectors', which no stage trains; did you mean 'connectors'"):
        replace(recipe, starter_rates={"conectors": 1e-3})
    minigpt4 = replace(load_recipe("minigpt4")[1], starter=1.0, starter_shares={"blip2": 9, "pretrain": 3})
    stages = at_scale(minigpt4, "starter").stages
    assert [stage.epochs for stage in stages] == [2.0, 1.5, 0.5], "those of before share among themselves"
    assert trains_as(uneven.to_json()) == trains_as(recipe.to_json()), "its stages have taken the shares already"


def test_at_starter_scale_layers_of_a_transformer_learn_at_a_lower_rate_than_matrices() -> None:
    """And every stage's rate falls to its end, also where the paper's is constant over half a million steps."""

    def rates(name: str) -> list[dict[str, float]]:
        stages = at_scale(load_recipe(name)[1], "starter").stages
        assert {stage.schedule for stage in stages} == {"cosine"}
        return [{part: rate.lr for part, rate in stage.train.items()} for stage in stages]

    deep, matrix = TRANSFORMER_RATE, ALIGNMENT_RATE
    assert rates("llava15")[0] == {"connectors": matrix}
    assert rates("minigpt4")[0] == {"connectors.image.qformer": deep, "connectors.image.project": deep}
    assert rates("flamingo")[0] == {"connectors": deep, "fusion": deep, "tokens": STARTER_RATES["tokens"]}
    assert rates("cogvlm")[0] == {"connectors": matrix, "fusion": deep}, "experts are the LLM's own layers"
    assert rates("kosmos1")[0]["connectors"] == STARTER_RATES["connectors"], "one layer is no transformer"
    assert [stage.get("encoders") for stage in rates("qwen_vl")] == [1e-4, 1e-4, None], "its own, where it learns"
    assert rates("sharegpt4v")[1]["encoders"] == STARTER_RATES["encoders"]
    assert [stage["llm"] for stage in rates("pali_x")] == [5e-4, 5e-4], "a random LLM learns slowly or badly"
    assert [(s["connectors"], s["llm"]) for s in rates("minigpt_v2")] == [(5e-3, 5e-3)] * 3, "and adapters fast"


def test_behind_a_header_the_starter_llm_s_answers_begin_with_a_space() -> None:
    """Not where a Q-Former or a P-Former reads; and nowhere but at that scale."""
    changed = set()
    for name in NAMES:
        recipe = load_recipe(name)[1]
        small = at_scale(recipe, "starter")
        before, after = [s.template for s in (*recipe.before, *recipe.stages)], [s.template for s in small.stages]
        before, after = [*before, recipe.template], [*after, small.template]
        changed |= {old.name for old, new in zip(before, after, strict=True) if (old.answer, new.answer) == ("", " ")}
        assert all(new.answer in (old.answer, " ") for old, new in zip(before, after, strict=True))
        assert at_scale(recipe, "tiny").template.answer == recipe.template.answer
    assert changed == {"qwen_vl", "fuyu", "lavin", "alpaca", "multimodal_gpt", "open_flamingo"}


@pytest.mark.parametrize(("scale", "most"), [("starter", 10_000_000), ("tiny", 300_000)])
def test_a_small_scale_is_small(recipe: Recipe, scale: str, most: int) -> None:
    with torch.device("meta"):
        assert count(at_scale(recipe, scale).build()) < most


def test_every_templates_spelling_is_complete(recipe: Recipe) -> None:
    for stage in recipe.stages:
        assert isinstance(stage.template, Template)
        assert stage.template.end, "an answer without an end never learns to stop"


def test_stage_names_are_unique_and_there_is_one(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="needs at least one, each with a name of its own"):
        Recipe(model=recipe.model, stages=(), paper=recipe.paper)
    with pytest.raises(ConfigError, match="each with a name of its own"):
        Recipe(model=recipe.model, stages=(recipe.stages[0],) * 2, paper=recipe.paper)


def test_a_stage_is_chosen_by_its_name(recipe: Recipe) -> None:
    last = recipe.stages[-1]
    assert recipe.only([last.name]) == (last,)
    with pytest.raises(ConfigError, match="no stage 'nothing'"):
        recipe.only(["nothing"])


def test_an_unknown_scale_or_recipe_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="no scale 'huge'; there are full, starter, tiny"):
        at_scale(load_recipe("llava")[1], "huge")
    with pytest.raises(ConfigError, match="no recipe 'lava'; did you mean 'llava'"):
        load_recipe("lava")


MINE = '''
from dataclasses import replace
from quintet.lab.recipe import load_recipe
def recipe():
    """LLaVA-1.5 with a deeper connector."""
    base = load_recipe("llava15")[1]
    deeper = replace(base.model.connectors["image"], depth=3)
    return replace(base, model=replace(base.model, connectors={"image": deeper}))
'''


def test_a_recipe_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "deeper.py"
    path.write_text(MINE)
    name, found = load_recipe(str(path))
    assert name == "deeper"
    connectors: Mapping = found.model.connectors
    assert connectors["image"].depth == 3


@pytest.mark.parametrize("content", [None, "x = 1\n", "def recipe():\n    return 3\n"])
def test_a_file_without_a_recipe_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / f"broken{len(content or '')}.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="broken"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef recipe(:\n", "line 2: SyntaxError: invalid syntax"),
        ("\n\nimport nosuchmodule\n", "line 3: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def recipe():\n    raise ValueError('no such depth')\n", "line 2: ValueError: no such depth"),
        ("def recipe():\n    assert False\n", "line 2: AssertionError"),
    ],
)
def test_a_broken_recipe_of_ones_own_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "my_broken_recipe.py"
    path.write_text(text)
    for command in (["show", path], ["train", path, "--out", tmp_path / "run"], ["compare", "llava", path]):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert (result.exit_code, result.stderr.strip()) == (1, f"error: my_broken_recipe.py, {said}")
    shown = CliRunner().invoke(app, ["--traceback", "show", str(path)]).exception
    assert isinstance(shown, ConfigError)
    assert shown.__cause__ is not None


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of a recipe's file is in it, so that it is no fault of who typed the command."""

    def broken() -> None:
        raise ValueError("ours")

    monkeypatch.setattr(llava15, "recipe", broken)
    raised = CliRunner().invoke(app, ["show", "llava15"]).exception
    assert isinstance(raised, ValueError)
    assert not isinstance(raised, QuintetError)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave the part out of `train` to freeze it"):
        Rate(lr=0.0)


def test_a_run_of_an_older_version_trains_as_the_recipe_does() -> None:
    """Its recipe.json lacks settings that came since; their defaults are what it did."""
    now = load_recipe("llava15")[1].to_json()
    older = {key: value for key, value in now.items() if key not in ("starter_rates", "starter_shares", "before")}
    older["stages"] = [{k: v for k, v in each.items() if k not in ("optimizer", "too_long")} for each in now["stages"]]
    assert trains_as(older) == trains_as(now)
    older["stages"][0]["batch"] = 7
    assert trains_as(older) != trains_as(now)
    assert trains_as(None) == {}
