"""Settings as JSON and back: typed, checked, and every message names the place and the nearest name. About 4 s."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from quintet.components.connectors.mlp import Mlp
from quintet.components.lora import Lora
from quintet.components.roles import ConnectorConfig
from quintet.config.base import Config, coerce, decode, encode
from quintet.errors import ConfigError
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import SCALES, at_scale
from quintet.training.stage import Rate


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    """A part of `Outer`."""

    width: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    """Every kind of field."""

    inner: Inner
    parts: Mapping[str, Inner] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    pair: tuple[str, float] = ("a", 1.0)
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    either: int | str = 0
    path: Path = Path("x")
    on: bool = False


FULL = Outer(
    inner=Inner(width=3),
    parts={"a": Inner(width=1)},
    sizes=(1, 2),
    pair=("b", 2.0),
    mode="slow",
    limit=4,
    either="text",
    path=Path("a/b"),
    on=True,
)


def test_a_config_of_every_kind_of_field_comes_back_equal() -> None:
    assert Outer.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_at_every_scale_comes_back_equal_from_json(name: str, scale: str) -> None:
    recipe = at_scale(load_recipe(name)[1], scale)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def changed(**fields: Any) -> dict[str, Any]:
    return FULL.to_json() | fields


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(mood="slow"), "Outer has no setting 'mood'; did you mean 'mode'?"),
        (changed(mode="quick"), "Outer.mode is 'quick'; expected one of 'fast', 'slow'"),
        (changed(inner={"width": "3"}), "Outer.inner.width is '3'; expected int"),
        (changed(inner={"wdith": 3}), "Outer.inner: Inner has no setting 'wdith'; did you mean 'width'?"),
        (changed(inner={}), "Outer.inner: .*missing 1 required keyword-only argument: 'width'"),
        (changed(inner=3), "Outer.inner is 3; expected Inner"),
        (changed(inner=changed()), "Outer.inner is a Outer; expected a Inner"),
        (changed(parts=[1]), "Outer.parts is \\[1\\]; expected a mapping"),
        (changed(parts={"a": {"width": True}}), "Outer.parts.a.width is True; expected int"),
        (changed(sizes=3), "Outer.sizes is 3; expected a list"),
        (changed(sizes=[1, "b"]), "Outer.sizes\\[1\\] is 'b'; expected int"),
        (changed(pair=["a"]), "Outer.pair has 1 values; expected 2"),
        (changed(limit="4"), "Outer.limit is '4'; expected int"),
        (changed(either=[1]), "Outer.either is \\[1\\]; no allowed type fits it"),
        (changed(on=1), "Outer.on is 1; expected bool"),
        ({"type": "quintet.no.such:Thing"}, "no module 'quintet.no.such'"),
        ({"type": "quintet.errors:ConfigError"}, "type 'quintet.errors:ConfigError' is not a known config"),
        ({"type": "os:system"}, "type 'os:system' is not a known config"),
        ({"type": "antigravity:Config"}, "type 'antigravity:Config' is not a known config"),
        (3, "Outer is 3; expected Outer"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer.from_json(data)


def test_reading_a_config_imports_nothing_from_outside() -> None:
    """`antigravity` opens a web page when it is imported; a name in a file must not do that."""
    import sys

    with pytest.raises(ConfigError):
        Config.from_json({"type": "antigravity:Config"})
    assert "antigravity" not in sys.modules


def test_a_config_of_another_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Outer is a Rate; expected a Outer"):
        Outer.from_json(Rate(lr=1.0).to_json())


def test_the_base_reads_whatever_class_the_file_names() -> None:
    assert Config.from_json(Mlp.Config(depth=3).to_json()) == Mlp.Config(depth=3)
    assert decode(Mlp.Config(depth=3).to_json(), ConnectorConfig, where="x") == Mlp.Config(depth=3)


def test_where_one_class_is_meant_its_name_may_be_left_out() -> None:
    assert decode({"lr": 0.1, "lora": Lora(rank=2).to_json()}, Rate, where="x") == Rate(lr=0.1, lora=Lora(rank=2))


def test_whole_numbers_become_floats_where_floats_are_meant_and_never_the_other_way() -> None:
    assert isinstance(coerce(1, float, where="x"), float)
    with pytest.raises(ConfigError, match=r"x is 1\.0; expected int"):
        coerce(1.0, int, where="x")


def test_only_plain_data_can_be_written() -> None:
    with pytest.raises(ConfigError, match="a config holds"):
        encode({"a": object()})


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        FULL.mode = "fast"  # type: ignore[misc]
