"""Steps of training: which samples, in which rows, on which rank; drops count when their step is taken. 4 s."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import byte_tokenizer, picture, picture_rows
from quintet.components.roles import ImageSpec
from quintet.data.drops import Drops
from quintet.data.features import FeatureCache
from quintet.data.media import load_image
from quintet.data.pipeline import MediaLoader, Micro, Plan, Planner, StepPlan, batches, measure_with
from quintet.data.sources import open_source
from quintet.data.template import Frame, Template
from quintet.errors import DataError, TrainingError
from quintet.values import Features, Item, Layout, Media, Node, Origin, Ref, Sample, Text, Turn

CHAT = Template(name="chat", user=Frame(before="U:"), assistant="A:", end="</s>")
PLAN = Plan(batch=4, steps=5, row=60, micro=120, seed=3)
SPEC = ImageSpec(size=(8, 8))


class Rows:
    """Rows of given lengths; a negative one is faulty."""

    name = "rows"

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> Sample:
        if self.lengths[index] < 0:
            raise DataError("broken", "it is broken")
        turns = (Turn("user", (Text("q"),)), Turn("assistant", (Text("a" * self.lengths[index]),)))
        return Sample(Node(turns), Origin("rows.json", index + 1))


def planner(source: Rows, plan: Plan = PLAN) -> Planner:
    return Planner(source, CHAT, byte_tokenizer(), lambda m: ((8, 8), 1), plan)


def rows_of(plans: list[StepPlan]) -> list[tuple[int, ...]]:
    """The rows of a step over all ranks, as source rows, in a fixed order."""
    return sorted(tuple(t.origin.row for t in row) for plan in plans for group in plan.micro for row in group)


def test_each_epoch_is_another_order_of_all_rows() -> None:
    made = planner(Rows(*range(1, 9)))
    epochs = [[made.index(8 * e + n) for n in range(8)] for e in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_step_is_the_same_whoever_asked_for_which_step_before() -> None:
    """A resume asks for step 3 at once: the state of the data is the number of the step."""
    source = Rows(*range(1, 7))
    straight = planner(source)
    third = [rows_of([straight.step(n)]) for n in range(4)][3]
    assert rows_of([planner(source).step(3)]) == third


def test_another_seed_is_another_order() -> None:
    source = Rows(*range(1, 30))
    assert rows_of([planner(source).step(0)]) != rows_of([planner(source, replace(PLAN, seed=4)).step(0)])


@pytest.mark.parametrize("world", [2, 3, 5])
def test_rows_and_counts_of_a_step_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    """With five ranks and at most four rows someone has none, and gets empty micro-batches, as many as the others."""
    source = Rows(5, 40, 12, 33, 7, 21, 2)
    for step in range(4):
        alone = planner(source).step(step)
        ranks = [planner(source, replace(PLAN, rank=r, world=world)).step(step) for r in range(world)]
        assert rows_of(ranks) == rows_of([alone])
        assert {(p.count, p.tokens) for p in ranks} == {(alone.count, alone.tokens)}
        assert len({len(p.micro) for p in ranks}) == 1


def test_the_count_of_a_step_by_hand() -> None:
    """An answer of n letters has n + 2 targets: the space before it and the end marker. 5 tokens stand before."""
    step = planner(Rows(3, 3, 3, 3), replace(PLAN, packing=False)).step(0)
    assert step.count == 4 * 5
    assert step.tokens == 4 * (1 + 3 + 2 + 5)
    assert step.seen == 4


def test_micro_batches_hold_as_many_columns_as_they_may() -> None:
    """Samples of 21 columns, one a row, 44 columns a micro-batch: two rows each. A row of its own fits always."""
    two = planner(Rows(13, 13, 13, 13), replace(PLAN, packing=False, micro=44)).step(0)
    assert [len(group) for group in two.micro] == [2, 2]
    one = planner(Rows(13, 13, 13, 13), replace(PLAN, packing=False, micro=1)).step(0)
    assert [len(group) for group in one.micro] == [1, 1, 1, 1]


def test_what_is_left_out_of_a_step_is_told_with_its_row_and_counted_when_the_step_is_taken() -> None:
    made = planner(Rows(3, -1, 500, 4))
    drops = Drops(limit=0.9)
    plan = made.step(0)
    assert sorted(str(e).split(":")[0] for e in plan.dropped) == ["rows, row 2", "rows.json, row 3"]
    assert (drops.seen, drops.dropped) == (0, 0)
    drops.take(plan)
    assert (drops.seen, drops.faults) == (4, {"broken": 1, "too-long": 1})


def test_a_sample_that_is_too_long_stops_the_run_if_that_is_the_policy() -> None:
    with pytest.raises(DataError, match="508 tokens; a row holds 60") as caught:
        planner(Rows(3, 500), replace(PLAN, too_long="error")).step(0)
    assert (caught.value.file, caught.value.row) == ("rows.json", 2)


def test_a_step_of_which_nothing_is_left_stops_the_run() -> None:
    with pytest.raises(TrainingError, match="all of its 4 samples were dropped"):
        planner(Rows(-1, -1)).step(0)


def test_a_source_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no row to train on"):
        planner(Rows())


def test_more_drops_than_the_limit_stop_the_run_once_a_hundred_samples_were_seen() -> None:
    """Limit 2 %: 3 of 99 are borne, 3 of 100 are not."""
    drops = Drops(limit=0.02, seen=99)
    for _ in range(3):
        drops.add(DataError("broken", "it is broken"))
    drops.seen = 100
    with pytest.raises(TrainingError, match=r"4 of 100 samples were dropped \(3 broken, 1 worse\)"):
        drops.add(DataError("worse", "it is worse"))


def test_of_a_small_source_one_faulty_row_is_borne_however_often_and_two_are_not() -> None:
    drops = Drops(limit=0.02, rows=8, seen=4)
    for _ in range(9):
        drops.add(DataError("broken", "it is broken", row=3))
    with pytest.raises(TrainingError, match=r"2 of 8 rows were dropped \(10 broken\)"):
        drops.add(DataError("broken", "it is broken", row=4))


def test_a_row_that_is_met_again_is_counted_and_not_named_again(caplog: pytest.LogCaptureFixture) -> None:
    drops = Drops(limit=0.9)
    for row in (3, 3, 4, 3):
        drops.add(DataError("broken", "it is broken", file="rows.json", row=row))
    assert drops.faults == {"broken": 4}
    assert [record.getMessage().partition("rows.json, ")[2][:5] for record in caplog.records] == ["row 3", "row 4"]


def test_a_medium_of_a_kind_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(DataError, match="of kind 'audio'; this model takes \\['image'\\]"):
        measure_with({"image": SPEC}, lambda kind, size: 1)(Media("audio", Ref("a.wav")))


def test_a_header_is_read_only_where_the_size_depends_on_it(tmp_path: Path) -> None:
    """No such file: with a fixed size nobody notices, with native sizes it is a fault."""
    medium = Media("image", Ref("none.png", path=tmp_path / "none.png"))
    assert measure_with({"image": SPEC}, lambda kind, size: 7)(medium) == ((8, 8), 7)
    with pytest.raises(DataError):
        measure_with({"image": replace(SPEC, fit="native")}, lambda kind, size: 7)(medium)


# ---- loading -----------------------------------------------------------------------------------------------------
def loaded(folder: Path, *, workers: int, steps: int = 3) -> Iterator[tuple[StepPlan, list[Micro]]]:
    tokenizer = byte_tokenizer()
    specs = {"image": SPEC}
    source = open_source(folder / "rows.json")
    plan = replace(PLAN, row=200, micro=1)
    made = Planner(source, CHAT, tokenizer, measure_with(specs, lambda kind, size: 4), plan)
    return batches((made.step(n) for n in range(steps)), MediaLoader(specs), pad=tokenizer.pad_id, workers=workers)


def test_workers_change_nothing(tmp_path: Path) -> None:
    picture_rows(tmp_path, 5, text_only=2)
    here, there = list(loaded(tmp_path, workers=0)), list(loaded(tmp_path, workers=2))
    assert [p.step for p, _ in here] == [p.step for p, _ in there] == [0, 1, 2]
    for (_, mine), (_, other) in zip(here, there, strict=True):
        assert len(mine) == len(other) > 1
        for a, b in zip(mine, other, strict=True):
            assert a.batch is not None
            assert b.batch is not None
            assert torch.equal(a.batch.tokens, b.batch.tokens)
            assert a.batch.media.keys() == b.batch.media.keys()
            for kind in a.batch.media:
                for x, y in zip(a.batch.media[kind].values, b.batch.media[kind].values, strict=True):
                    assert torch.equal(x, y)


def test_a_picture_that_cannot_be_opened_loses_its_sample_and_nothing_else(tmp_path: Path) -> None:
    """Three pictures a step in one micro-batch; the middle one is broken, and the others keep their own pixels."""
    path = picture_rows(tmp_path, 3)
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    tokenizer = byte_tokenizer()
    specs = {"image": SPEC}
    plan = replace(PLAN, batch=3, row=200, micro=2000)
    made = Planner(open_source(path), CHAT, tokenizer, measure_with(specs, lambda kind, size: 4), plan)
    ((_, (micro,)),) = batches(iter([made.step(0)]), MediaLoader(specs), pad=tokenizer.pad_id)
    assert [e.row for e in micro.lost] == [2]
    assert micro.batch is not None
    values = micro.batch.media["image"].values
    wanted = [load_image(Ref(n, path=tmp_path / "pictures" / n), SPEC) for n in ("0.png", "2.png")]
    assert {tuple(v.flatten().tolist()) for v in values} == {tuple(w.flatten().tolist()) for w in wanted}


def test_a_micro_batch_of_which_nothing_is_left_is_none(tmp_path: Path) -> None:
    picture_rows(tmp_path, 1)
    (tmp_path / "pictures" / "0.png").unlink()
    ((_, micro),) = loaded(tmp_path, workers=0, steps=1)
    assert all(m.batch is None and m.lost for m in micro)


def test_kept_features_come_before_the_file_and_nothing_raw_comes_among_them(tmp_path: Path) -> None:
    """A picture that is replaced during the run is a fault: its encoder would run on one rank alone."""
    picture(1).save(tmp_path / "p.png")
    ref = Ref("p.png", path=tmp_path / "p.png")
    item = Item("image", ref, (8, 8), 0, 2)
    cache = FeatureCache(tmp_path / "cache", kind="image", encoder="e", dim=3, dtype=torch.float32)
    cache.fill([ref], lambda refs: iter([(refs, Features(torch.ones(2, 3), (Layout((2,)),)))]))
    assert torch.equal(MediaLoader({"image": SPEC}, cache)(item).value, torch.ones(2, 3))
    picture(2).save(tmp_path / "p.png")
    later = FeatureCache(tmp_path / "cache", kind="image", encoder="e", dim=3, dtype=torch.float32)
    with pytest.raises(DataError) as caught:
        MediaLoader({"image": SPEC}, later)(item)
    assert caught.value.fault == "not-kept"


def test_most_pictures_missing_of_a_hundred_stop_the_run_and_of_fewer_its_end_does() -> None:
    """50 of 100 are borne, 51 of 101 are not; pictures that a limit left out are there."""
    drops = Drops(limit=0.02, left_out={"missing-file": 50, "too-many": 30}, shown=20)
    drops.judge(100)
    drops.left_out["missing-file"] += 1
    with pytest.raises(TrainingError, match=r"81 of 101 pictures \(51 missing-file, 30 too-many\)"):
        drops.judge(100)
    few = Drops(limit=0.02, left_out={"missing-file": 3}, shown=2)
    few.judge(100)
    with pytest.raises(TrainingError, match="3 of 5 pictures"):
        few.judge()
