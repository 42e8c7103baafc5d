"""Scenes on disk: layouts, splits, and equal bytes for equal arguments."""

import hashlib
import itertools
import json
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from quintet.data.scenes import SPLITS, World, make_scenes, read_truth, render, split_sizes, stream
from quintet.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes") / "out", 60, 7, format="both")


def digest(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_arguments_give_equal_bytes(made: Path, tmp_path: Path) -> None:
    assert digest(make_scenes(tmp_path / "again", 60, 7, format="both")) == digest(made)


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    sizes = {"val": 5, "test": 5}
    alone = make_scenes(tmp_path / "alone", 40, 1, splits=sizes)
    assert digest(make_scenes(tmp_path / "together", 40, 1, splits=sizes, workers=2)) == digest(alone)


def test_another_seed_gives_other_pictures(made: Path, tmp_path: Path) -> None:
    other = make_scenes(tmp_path / "other", 5, 8, splits={"val": 0, "test": 0})
    assert not {path.name for path in other.rglob("*.png")} & {path.name for path in made.rglob("*.png")}


def test_pictures_are_named_by_their_pixels_and_splits_are_disjoint(made: Path) -> None:
    names = []
    for split, size in split_sizes(60).items():
        paths = sorted((made / "images" / split).iterdir())
        assert len(paths) == size
        for path in paths:
            assert path.stem == hashlib.sha256(Image.open(path).convert("RGB").tobytes()).hexdigest()[:12]
        names += [path.stem for path in paths]
    assert len(set(names)) == len(names)


def test_llava_files_have_the_fields_and_the_picture_first(made: Path) -> None:
    for split, kind in itertools.product(SPLITS, ("", "_captions", "_regions", "_ocr")):
        for row in json.loads((made / f"{split}{kind}.json").read_text()):
            places = sum(turn["value"].count("<region>") for turn in row["conversations"])
            assert set(row) == {"id", "image", "conversations", *["regions"] * (places > 0)}
            assert len(row.get("regions", [])) == places
            assert places or kind != "_regions"
            assert (made / row["image"]).is_file()
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert turns[0]["value"].startswith("<image>\n")
            assert sum("<image>" in turn["value"] for turn in turns) == 1
            assert all(turn["value"] for turn in turns)
            assert len(turns) == 2 if kind == "_captions" else len(turns) >= 2


def test_every_word_and_digit_is_asked_for_once(made: Path) -> None:
    for split in SPLITS:
        rows = {row["id"]: row["conversations"] for row in json.loads((made / f"{split}_ocr.json").read_text())}
        for each in read_truth(made / f"{split}.truth.jsonl"):
            digit, word = each.scene.digit, each.scene.word
            written = ([str(digit.value)] if digit else []) + ([word.text] if word else [])
            turns = rows.pop(each.image.stem, [])
            assert sorted(turn["value"] for turn in turns[1::2]) == written
            for asked, said in zip(turns[::2], turns[1::2], strict=True):
                assert ("digit" in asked["value"]) == said["value"].isdigit()
        assert not rows


def test_what_is_told_in_words_answers_the_questions_without_a_picture(made: Path) -> None:
    rows = json.loads((made / "train_text.json").read_text())
    assert len(rows) == 60
    for row in rows:
        first, *others = [turn["value"] for turn in row["conversations"]]
        assert set(row) == {"id", "conversations"}
        assert re.match(r"(There is an? .+\.|The picture is empty\.|The (digit|word) .+\.)\n\S", first)
        assert others
        assert not any("<image>" in said or "<region>" in said for said in (first, *others))
    digits = [row for row in rows if any("digit" in turn["value"] for turn in row["conversations"][2::2])]
    for row in digits:
        [told] = re.findall(r"The digit (\d) is shown", row["conversations"][0]["value"]) or ["none"]
        answers = [
            b["value"] for a, b in itertools.pairwise(row["conversations"]) if "digit" in a["value"].split("\n")[-1]
        ]
        assert {a for a in answers if a not in ("yes", "no")} <= {told}


def test_truth_gives_back_scene_and_picture(made: Path) -> None:
    for split in SPLITS:
        for each, scene in zip(read_truth(made / f"{split}.truth.jsonl"), stream(World(), 7, split), strict=False):
            assert each.scene == scene
            assert Image.open(each.image).convert("RGB").tobytes() == render(scene).tobytes()
            assert {q.kind for q in each.questions} >= {"existence", "count"}
            assert len(each.grounding) == len(scene.objects)
            assert set(each.pope) == {"random", "popular", "adversarial"}


def test_a_broken_truth_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test.truth.jsonl"
    path.write_text('{"image": "a.png"}\n')
    with pytest.raises(DataError, match="row 1") as caught:
        read_truth(path)
    assert caught.value.fault == "not-truth"


def test_shards_hold_picture_text_and_facts_per_key(made: Path) -> None:
    with tarfile.open(made / "webdataset" / "train" / "00000.tar") as tar:
        members = tar.getmembers()
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
        keys = [member.name.partition(".") for member in members]
        assert [ending for _, _, ending in keys] == ["png", "txt", "json"] * 60
        facts = json.load(tar.extractfile(members[2]))  # type: ignore[arg-type]
        text = tar.extractfile(members[1]).read().decode()  # type: ignore[union-attr]
    assert facts["key"] == keys[2][0] == "000000000"
    assert facts["caption"] == text


def test_scenes_json_says_how_it_was_made(made: Path) -> None:
    facts = json.loads((made / "scenes.json").read_text())
    assert facts["seed"] == 7
    assert facts["splits"] == {"train": 60, "val": 50, "test": 50}
    assert World(**facts["world"]) == World()
    assert set(facts["versions"]) == {"numpy", "pillow", "scikit-learn"}


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_scenes(tmp_path / "out", 4, 0, splits={"val": 2, "test": 1}, progress=lambda *at: seen.append(at))
    assert seen == [(i, 7) for i in range(1, 8)]


def test_formats_write_only_what_was_asked(tmp_path: Path) -> None:
    none = {"val": 0, "test": 0}
    llava = make_scenes(tmp_path / "llava", 2, 0, splits=none)
    shards = make_scenes(tmp_path / "shards", 2, 0, splits=none, format="webdataset")
    assert not (llava / "webdataset").exists()
    assert not (shards / "train.json").exists()
    assert len(read_truth(shards / "train.truth.jsonl")) == 2


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not an empty folder"):
        make_scenes(tmp_path, 2, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "out", 3, 0, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"splits": {"tset": 3}}, "did you mean 'test'"), ({"format": "lava"}, "llava"), ({"splits": {"val": -1}}, "-1")],
)
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_scenes(tmp_path / "out", 2, 0, **wrong)  # type: ignore[arg-type]


def test_a_relative_folder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (make_scenes(Path("a/b"), 1, 0, splits={"val": 0, "test": 0}) / "scenes.json").is_file()
