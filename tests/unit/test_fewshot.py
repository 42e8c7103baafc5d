"""Solved examples before a question: what they show, who can use them, and what an answer is cut to."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from quintet.data.processor import Processor
from quintet.data.scenes import Scene, make_scenes, read_truth
from quintet.data.scenes.pages import NAMES, SHOTS
from quintet.data.sources import open_source
from quintet.errors import DataError
from quintet.evaluation.run import Answer, evaluate
from quintet.evaluation.shuffle import shuffled
from quintet.evaluation.task import Item
from quintet.evaluation.tasks.catalogue import TASKS, find_task
from quintet.evaluation.tasks.scenes import NAMES as NAMES_OF_TASKS
from quintet.evaluation.tasks.scenes import names_in
from quintet.lab.compare import Comparison
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.recipes._scale import at_scale
from quintet.serving.engine import Engine
from quintet.values import Media, Ref, Sample, Text, Turn

READERS = ("flamingo", "open_flamingo", "multimodal_gpt", "idefics", "vila", "kosmos1", "kosmos2", "mm1", "frozen_lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("shots") / "scenes", 120, 5, splits={"val": 0, "test": 60})


@pytest.fixture(scope="module")
def items(folder: Path) -> list[Item]:
    return find_task("scenes.fewshot", data=folder).items()


@pytest.fixture(scope="module")
def truths(folder: Path) -> dict[str, Scene]:
    """The scenes of both splits by the bytes of their pictures: shuffled media change what is known."""
    made = [*read_truth(folder / "train.truth.jsonl"), *read_truth(folder / "test.truth.jsonl")]
    return {hashlib.sha256(truth.image.read_bytes()).hexdigest(): truth.scene for truth in made}


def scene_of(medium: Media, truths: dict[str, Scene]) -> Scene:
    return truths[hashlib.sha256(medium.ref.read()).hexdigest()]


def words(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, Text))


def shots(sample: Sample) -> list[tuple[Media, str, str]]:
    """Picture, question and answer of each example."""
    *turns, _ = sample.root.turns
    return [
        (next(p for p in asked.parts if isinstance(p, Media)), words(asked), words(said))
        for asked, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def attribute(question: str, scene: Scene) -> str:
    return getattr(scene.objects[0], "shape" if "shape" in question else "colour") if scene.objects else ""


def reader(truths: dict[str, Scene], *, reads: bool = True, looks: bool = True) -> Answer:
    """Answers with a made-up name by what the examples show; `reads` them or not, `looks` at pictures or not."""

    def answer(samples: list[Sample]) -> list[str]:
        found = []
        for sample in samples:
            examples = shots(sample) if reads else []
            question, picture = words(sample.root.turns[-1]), sample.media()[-1]
            wanted = attribute(question, scene_of(picture, truths))
            fits = [
                said for shown, _, said in examples
                if not looks or attribute(question, scene_of(shown, truths)) == wanted
            ]  # fmt: skip
            found.append(fits[0] if fits else NAMES[0])
        return found

    return answer


# ---- the data ----------------------------------------------------------------------------------------------------
def test_examples_are_from_the_training_split_and_never_the_picture_asked_about(items: list[Item]) -> None:
    kinds = Counter(item.kind for item in items)
    assert kinds.keys() == {"vqa-0", "vqa-2", "vqa-4", "names-2", "names-4"}
    assert kinds["vqa-0"] == kinds["vqa-4"] == 60
    for item in items:
        *examples, asked = [medium.ref.name for medium in item.media]
        assert len(examples) == int(item.kind[-1])
        assert [turn.role for turn in item.context] == ["user", "assistant"] * len(examples)
        assert len(set(examples)) == len(examples)
        assert all(name.startswith("images/train/") for name in examples)
        assert asked.startswith("images/test/")


def test_the_same_question_is_asked_at_every_number_of_shots_and_more_shots_hold_the_fewer(items: list[Item]) -> None:
    by_id = {item.id: item for item in items}
    for number in range(60):
        none, two, four = (by_id[f"vqa-{k}/{number:06d}"] for k in SHOTS)
        assert none.parts == two.parts == four.parts
        assert none.truth == two.truth == four.truth
        assert two.context == four.context[:4]
        assert none.context == ()


def test_half_of_the_examples_have_the_asked_name_and_the_scenes_bear_it_out(
    items: list[Item], truths: dict[str, Scene]
) -> None:
    named = [item for item in items if item.kind.startswith("names")]
    assert len(named) > 10
    assert len({item.truth for item in named}) > 3, "names are drawn anew each time"
    places = Counter()
    for item in named:
        question, wanted = words(item.sample().root.turns[-1]), scene_of(item.media[-1], truths)
        examples = shots(item.sample())
        said = [name for *_, name in examples]
        assert len(set(said)) == 2
        assert said.count(item.truth) == len(said) // 2
        assert set(said) <= set(NAMES)
        for shown, asked, name in examples:
            assert asked == question
            same = attribute(question, scene_of(shown, truths)) == attribute(question, wanted)
            assert same == (name == item.truth)
        places[said.index(item.truth)] += 1
    assert min(places[0], sum(places.values()) - places[0]) > 2, "the place of an example says nothing"


def test_training_contexts_show_other_pictures_and_a_made_up_name_is_learnt_where_it_is_asked(folder: Path) -> None:
    source = open_source(folder / "train_fewshot.json")
    assert not [fault for row in range(len(source)) for fault in source.read(row).faults]
    kinds = Counter()
    for row in range(len(source)):
        sample = source.sample(row)
        kind = sample.origin.id.split("/")[0]
        kinds[kind] += 1
        names = [medium.ref.name for medium in sample.media()]
        assert len(set(names)) == len(names) == int(kind[-1]) + 1
        weights = [turn.weight for turn in sample.turns() if turn.role == "assistant"]
        assert weights == ([0.0] * (len(weights) - 1) + [1.0] if "names" in kind else [1.0] * len(weights))
    assert len(kinds) == 5
    assert len(source) == 120


def test_a_world_without_single_objects_and_a_split_without_examples_give_what_they_can(tmp_path: Path) -> None:
    alone = make_scenes(tmp_path / "alone", 1, 0, splits={"val": 0, "test": 3})
    kinds = {item.kind for item in find_task("scenes.fewshot", data=alone).items()}
    assert kinds == {"vqa-0"}


# ---- the task ----------------------------------------------------------------------------------------------------
def test_who_reads_the_examples_and_looks_is_right_and_nobody_else(
    folder: Path, items: list[Item], truths: dict[str, Scene]
) -> None:
    task = find_task("scenes.fewshot", data=folder)
    both = evaluate(reader(truths), task)
    assert (both.kinds["names-2"], both.kinds["names-4"]) == (1, 1)
    for kind in ("names-2", "names-4"):
        assert both.control_kinds["majority"][kind] < 0.5
        assert both.control_kinds["shuffled"][kind] < 0.85
    assert evaluate(reader(truths, reads=False), task).kinds["names-4"] < 0.4
    assert evaluate(reader(truths, looks=False), task).kinds["names-4"] < 0.8


def test_the_control_takes_all_pictures_away_and_keeps_all_words(items: list[Item]) -> None:
    swapped = shuffled(items, seed=0)
    assert len(swapped) == len(items)
    shown = {item.media for item in items}
    for index, other in swapped.items():
        own = items[index]
        assert other.prompt == own.prompt
        assert other.media != own.media
        assert other.media in shown, "all the pictures of one other item"
        assert [turn.role for turn in other.context] == [turn.role for turn in own.context]
        assert tuple(other.sample().media()) == other.media


def test_the_prompt_holds_the_examples_so_that_another_choice_of_them_is_another_task(items: list[Item]) -> None:
    item = next(item for item in items if item.kind == "names-2")
    assert item.truth in item.prompt
    assert item.prompt.endswith("called?")
    with pytest.raises(AssertionError, match="2 media for 3 places"):
        item.showing(item.media[:2])


def test_it_is_found_by_eval_and_by_compare(folder: Path) -> None:
    assert "scenes.fewshot" in TASKS
    assert Comparison(recipes=["vila"], out=folder / "none", tasks={"scenes.fewshot": 4}).tasks


def test_scenes_of_an_earlier_layout_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    assert names_in(folder) == list(NAMES_OF_TASKS)
    assert names_in(tmp_path) == [name for name in NAMES_OF_TASKS if name != "scenes.fewshot"]
    with pytest.raises(DataError, match="make them anew"):
        find_task("scenes.fewshot", data=folder, split="none").items()


# ---- answers -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", READERS)
def test_an_answer_ends_at_the_first_end_marker_as_examples_do(name: str, items: list[Item]) -> None:
    """What follows the prompt when its answer is known is one more example: an answer is what stands before its end."""
    recipe = at_scale(load_recipe(name)[1], "tiny")
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
    processor = Processor(tokenizer, recipe.template, recipe.model)
    item = next(item for item in items if item.kind == "names-2")
    prompt = processor.tokens(item.sample(), open=True).ids.tolist()
    solved = [*item.context, Turn("user", item.parts), Turn("assistant", (Text(item.truth),))]
    longer = Sample(type(item.sample().root)((*solved, *solved)))
    whole = processor.tokens(longer).ids.tolist()
    assert whole[: len(prompt)] == prompt
    rest, ends = whole[len(prompt) :], processor.stops()
    stop = next(n for n in range(1, len(rest)) if ends(rest[:n]))
    added = [tokenizer.id(token) for token in recipe.added_tokens]
    engine = Engine(build_model(recipe.model, vocab=tokenizer.vocab, added=added), processor)
    assert engine._text(rest[:stop]) == item.truth


@pytest.mark.parametrize("name", ["flamingo", "vila", "llava_next"])
def test_several_pictures_a_prompt_are_answered_each_in_its_tiles(name: str, items: list[Item], tmp_path: Path) -> None:
    recipe = at_scale(load_recipe(name)[1], "tiny")
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
    added = [tokenizer.id(token) for token in recipe.added_tokens]
    model = build_model(recipe.model, vocab=tokenizer.vocab, added=added)
    engine = Engine(model, Processor(tokenizer, recipe.template, recipe.model))
    wide = tmp_path / "wide.png"
    Image.new("RGB", (192, 64), "red").save(wide)
    item = next(item for item in items if item.kind == "names-4")
    asked = [item, item.showing([*item.media[:-1], Media("image", Ref("wide.png", path=wide))])]
    tokens = [engine.processor.tokens(each.sample(), open=True) for each in asked]
    assert [len(each.items) for each in tokens] == [5, 5]
    if name == "llava_next":
        assert tokens[1].items[-1].columns != tokens[0].items[-1].columns == tokens[0].items[0].columns
    assert len(engine.answer([each.sample() for each in asked], max_tokens=3)) == 2


def test_the_lines_of_a_result_name_every_picture_and_every_word(
    items: list[Item], folder: Path, tmp_path: Path
) -> None:
    evaluate(lambda samples: ["dax"] * len(samples), find_task("scenes.fewshot", data=folder), limit=20, out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "eval" / "scenes.fewshot.jsonl").read_text().splitlines()]
    assert {len(line["media"]) for line in lines} == {1, 3, 5}
    assert all(len(line["prompt"].split("\n")) == 2 * len(line["media"]) - 1 for line in lines)
