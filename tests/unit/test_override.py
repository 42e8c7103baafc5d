"""`a.b=c`: one setting of a recipe, found by its path, checked by its type. About 2 s."""

import pytest

from quintet.config.override import override
from quintet.errors import ConfigError
from quintet.lab.recipe import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.training.stage import Rate


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("llava15")[1]


def test_a_stage_is_found_by_its_name_or_its_number(recipe: Recipe) -> None:
    for path in ("stages.instruct.batch=64", "stages.1.batch=64", " stages.instruct.batch = 64 "):
        changed = override(recipe, path)
        assert [stage.batch for stage in changed.stages] == [256, 64]
    assert recipe.stages[1].batch == 128


def test_a_part_of_the_model_is_found_by_its_modality(recipe: Recipe) -> None:
    changed = override(recipe, "model.encoders.image.layer=-1")
    assert changed.model.encoders["image"].layer == -1  # type: ignore[attr-defined]
    assert changed.model.connectors == recipe.model.connectors


def test_a_rate_can_be_changed_added_and_given_adapters(recipe: Recipe) -> None:
    assert override(recipe, "stages.instruct.train.llm.lr=1e-4").stages[1].train["llm"] == Rate(lr=1e-4)
    assert override(recipe, 'stages.pretrain.train.llm={"lr": 0.5}').stages[0].train["llm"] == Rate(lr=0.5)
    lora = override(recipe, 'stages.instruct.train.llm.lora={"rank": 4}').stages[1].train["llm"].lora
    assert lora is not None
    assert lora.rank == 4


def test_a_part_of_a_connector_is_found_though_its_name_has_dots() -> None:
    changed = override(load_recipe("minigpt4")[1], "stages.pretrain.train.connectors.image.project.lr=1e-3")
    assert changed.stages[0].train == {"connectors.image.project": Rate(lr=1e-3)}


def test_values_are_words_numbers_lists_and_nothing(recipe: Recipe) -> None:
    assert override(recipe, "stages.pretrain.schedule=linear").stages[0].schedule == "linear"
    assert override(recipe, "stages.pretrain.betas=[0.9, 0.95]").stages[0].betas == (0.9, 0.95)
    assert override(recipe, "stages.pretrain.steps=null").stages[0].steps is None
    assert override(recipe, "stages.pretrain.packing=false").stages[0].packing is False
    assert override(recipe, "stages.pretrain.template.end=###").stages[0].template.end == "###"


def test_an_int_is_a_float_where_a_float_is_meant(recipe: Recipe) -> None:
    value = override(recipe, "stages.pretrain.epochs=2").stages[0].epochs
    assert (value, type(value)) == (2.0, float)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stages.instruct.batch", "sets nothing; write name=value"),
        ("stages.instruct.bach=1", "no setting 'bach' in Stage; did you mean 'batch'?"),
        ("stages.instrct.batch=1", "no member 'instrct'; did you mean 'instruct'?"),
        ("stages.2.batch=1", "no member '2'"),
        ("model.encoders.imge.layer=-1", "no key 'imge'; did you mean 'image'?"),
        ("stages.instruct.batch=many", "stages.instruct.batch is 'many'; expected int"),
        ("stages.instruct.batch=1.5", "stages.instruct.batch is 1.5; expected int"),
        ("stages.instruct.batch=true", "stages.instruct.batch is True; expected int"),
        ("stages.instruct.schedule=square", "expected one of 'cosine', 'constant', 'linear'"),
        ("stages.instruct.batch.size=1", "'size' goes below a plain value, 128"),
        ("stages.instruct.batch=0", "batch is 0; it counts samples and must be at least 1"),
        ("stages.instruct.train.llm.lr=0", "lr is 0.0; leave the part out of `train` to freeze it"),
        ("stages.instruct.train.llm=1e-4", "stages.instruct.train.llm is 0.0001; expected Rate"),
        ("stages.instruct.train.vision=1e-4", "stages.instruct.train.vision is 0.0001; expected Rate"),
        (
            'model.llm={"type": "quintet.components.connectors.mlp:Mlp.Config"}',
            "model.llm is a Mlp.Config; expected a LLMConfig",
        ),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_nearest_name(recipe: Recipe, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        override(recipe, assignment)
