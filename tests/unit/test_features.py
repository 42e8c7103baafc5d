"""Kept features: what comes back is what went in, whatever killed the writer, and never somebody else's. About 3 s."""

import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import byte_tokenizer, picture_rows
from quintet.components.encoders.presets import CLIP_L_336
from quintet.data.collate import Loaded
from quintet.data.features import FeatureCache, fingerprint
from quintet.data.media import load_image
from quintet.data.pipeline import Plan, Planner, measure_with
from quintet.data.sources import open_source
from quintet.errors import DataError
from quintet.lab.features import keep_features
from quintet.lab.recipe import load_recipe
from quintet.recipes._scale import at_scale
from quintet.training.loop import Settings
from quintet.training.stage import Rate
from quintet.values import Features, Item, Layout, Media, Ref

DIM = 3


def cache_in(folder: Path, *, encoder: str = "enc", dtype: torch.dtype = torch.float32) -> FeatureCache:
    return FeatureCache(folder, kind="image", encoder=encoder, dim=DIM, dtype=dtype)


def ref(number: int) -> Ref:
    return Ref(f"{number}.png", data=bytes([number]))


def encode(refs: list[Ref]) -> Iterator[tuple[list[Ref], Features]]:
    """Item n has n features, all of value n, in batches of two."""
    for start in range(0, len(refs), 2):
        some = refs[start : start + 2]
        counts = [r.read()[0] for r in some]
        values = torch.cat([torch.full((n, DIM), float(n)) for n in counts])
        yield some, Features(values, tuple(Layout((n,)) for n in counts))


def look(cache: FeatureCache, number: int, kind: str = "image") -> Loaded | None:
    return cache.lookup(Item(kind, ref(number), (8, 8), 0, number))


def test_features_come_back_with_their_layout_also_in_another_process(tmp_path: Path) -> None:
    assert cache_in(tmp_path).fill([ref(n) for n in (1, 2, 3)], encode) == 3
    there = pickle.loads(pickle.dumps(cache_in(tmp_path)))
    for n in (1, 2, 3):
        found = look(there, n)
        assert found is not None
        assert found.layout == Layout((n,))
        assert torch.equal(found.value, torch.full((n, DIM), float(n)))


def test_low_precision_features_take_half_the_bytes(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, dtype=torch.bfloat16)
    cache.fill([ref(4)], encode)
    assert next(tmp_path.rglob("*.bin")).stat().st_size == 4 * DIM * 2
    found = look(cache, 4)
    assert found is not None
    assert found.value.dtype == torch.bfloat16


def test_what_is_not_here_is_not_made_up(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.fill([ref(1)], encode)
    assert look(cache, 2) is None
    assert look(cache, 1, kind="audio") is None
    assert look(cache_in(tmp_path, encoder="another"), 1) is None


def test_equal_bytes_under_two_names_are_encoded_once(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    twice = [Media("image", Ref(name, data=b"\x02")) for name in ("a", "b")]
    other = [Media("audio", ref(1)), Media("image", Ref("gone", path=tmp_path / "gone"))]
    assert [r.name for r in cache.missing([*twice, *other])] == ["a"]
    cache.fill(cache.missing(twice), encode)
    assert cache.missing(twice) == []
    assert twice[1].ref in cache


def test_a_kill_loses_the_line_that_was_being_written_and_no_other(tmp_path: Path) -> None:
    """The index's last line is cut short; then another writer adds what is missing, in files of its own."""
    cache_in(tmp_path).fill([ref(n) for n in (1, 2, 3)], encode)
    index = next(tmp_path.rglob("*.jsonl"))
    index.write_text(index.read_text()[:-10])
    cache = cache_in(tmp_path)
    assert [look(cache, n) is not None for n in (1, 2, 3)] == [True, True, False]
    cache.fill([ref(3)], encode)
    again = cache_in(tmp_path)
    assert all(look(again, n) is not None for n in (1, 2, 3))


def test_features_that_are_shorter_than_their_index_says_are_not_read(tmp_path: Path) -> None:
    cache_in(tmp_path).fill([ref(n) for n in (1, 2)], encode)
    data = next(tmp_path.rglob("*.bin"))
    os.truncate(data, data.stat().st_size - 1)
    cache = cache_in(tmp_path)
    assert look(cache, 1) is not None
    assert look(cache, 2) is None


def test_another_writers_features_are_found_after_a_reload(tmp_path: Path) -> None:
    mine, theirs = cache_in(tmp_path), cache_in(tmp_path)
    theirs.fill([ref(2)], encode)
    assert look(mine, 2) is None
    mine.reload()
    assert look(mine, 2) is not None


def test_a_file_that_is_gone_is_a_fault_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        cache_in(tmp_path).digest(Ref("gone", path=tmp_path / "gone"))


def test_the_fingerprint_changes_with_a_weight_a_setting_and_the_number_format() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.temperature = torch.nn.Parameter(torch.tensor(1.0))
    prints = [fingerprint(layer, "a", torch.float32), fingerprint(layer, "b", torch.float32)]
    prints.append(fingerprint(layer, "a", torch.bfloat16))
    for weight in (layer.bias[:1], layer.temperature):
        with torch.no_grad():
            weight += 1
        prints.append(fingerprint(layer, "a", torch.float32))
    assert len(set(prints)) == 5


# ---- whether it pays ---------------------------------------------------------------------------------------------
def kept(
    tmp_path: Path, *, steps: int = 6, features: str = "auto", train: tuple[str, ...] = ("connectors",)
) -> tuple[FeatureCache | None, list[str]]:
    recipe = at_scale(load_recipe("llava15")[1], "tiny")
    torch.manual_seed(0)
    model = recipe.model.build()
    stage = replace(recipe.stages[0], steps=steps, train={part: Rate(lr=1.0) for part in train})
    source = open_source(picture_rows(tmp_path, 4))
    said: list[str] = []
    settings = Settings(features=features, precision="fp32")  # type: ignore[arg-type]
    cache = keep_features(model, stage, [stage], source, settings=settings, folder=tmp_path / "cache", note=said.append)
    if cache:
        for n in range(4):
            item = Item("image", source.sample(n).media()[0].ref, (32, 32), 0, 16)
            found = cache.lookup(item)
            assert found is not None
            with model.inference():
                direct = model.encoders["image"]((load_image(item.ref, model.config.spec("image")),))
            # In a batch or alone: sums of products may be cut otherwise. Values of size 3; measured: 0.
            torch.testing.assert_close(found.value, direct.values, atol=1e-5, rtol=0)
    return cache, said


def test_features_that_are_met_often_are_kept_and_equal_the_encoders(tmp_path: Path) -> None:
    """6 steps of 4 samples over 4 pictures: met 6 times."""
    cache, said = kept(tmp_path)
    assert cache is not None
    assert "met 6 times" in said[0]


def test_only_the_pictures_of_rows_that_are_met_are_encoded(tmp_path: Path) -> None:
    """One step of 4 of 9 rows; the step loads them from the cache, and would refuse any other."""
    recipe = at_scale(load_recipe("llava15")[1], "tiny")
    stage = replace(recipe.stages[0], steps=1, batch=4, train={"connectors": Rate(lr=1.0)})
    said: list[str] = []
    settings = Settings(features="on", precision="fp32", seed=5)
    source = open_source(picture_rows(tmp_path, 9))
    model = recipe.model.build()
    cache = keep_features(model, stage, [stage], source, settings=settings, folder=tmp_path / "cache", note=said.append)
    assert cache is not None
    assert "pictures of 4 rows" in said[0]
    assert said[1] == "encoding 4 pictures once"
    specs = {"image": model.config.spec("image")}
    plan = Plan(batch=4, steps=1, row=stage.row, micro=stage.micro, seed=5)
    planner = Planner(source, stage.template, byte_tokenizer(), measure_with(specs, model.config.columns), plan)
    assert all(cache.lookup(item) for n in range(4) for item in planner.tokens(n).items)


def test_features_that_are_met_once_are_not_kept_unless_asked_for(tmp_path: Path) -> None:
    assert kept(tmp_path, steps=1)[0] is None
    assert kept(tmp_path, steps=1, features="on")[0] is not None


def test_features_of_an_encoder_that_trains_are_never_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, train=("encoders", "connectors"), features="on")[0] is None


def test_features_are_not_kept_when_that_is_turned_off(tmp_path: Path) -> None:
    assert kept(tmp_path, features="off")[0] is None


def test_the_index_is_a_line_of_json_each(tmp_path: Path) -> None:
    cache_in(tmp_path).fill([ref(2)], encode)
    line = json.loads(next(tmp_path.rglob("*.jsonl")).read_text())
    assert line == {"digest": cache_in(tmp_path).digest(ref(2)), "offset": 0, "grid": [2], "extra": 0, "more": []}


def test_a_built_encoders_fingerprint_is_that_of_its_weights() -> None:
    torch.manual_seed(0)
    one = CLIP_L_336.tiny().build()
    torch.manual_seed(1)
    other = CLIP_L_336.tiny().build()
    assert fingerprint(one, "s", torch.float32) != fingerprint(other, "s", torch.float32)
