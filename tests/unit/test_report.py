"""The report of a run that has the files a real one has: steps as the loop writes them, results as `evaluate` does."""

import json
import math
import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from quintet.data.scenes import make_scenes
from quintet.errors import CheckpointError
from quintet.evaluation.run import evaluate
from quintet.evaluation.tasks.catalogue import find_task
from quintet.lab.change import Change, Row
from quintet.lab.plots import Mark, curve, ranges, scatter, smoothed, ticks
from quintet.lab.recipe import load_recipe
from quintet.lab.record import find_runs, note_pictures
from quintet.lab.report import write_report
from quintet.lab.samples import verdict
from quintet.model.checkpoint import write_json
from quintet.recipes._scale import at_scale
from quintet.values import Media, Sample, Text

TASKS = ("scenes.vqa", "scenes.pope", "scenes.caption", "scenes.chair", "scenes.grounding", "scenes.ocr")


class Pretender:
    """Answers from the truth most of the time, but only if the picture is the question's own."""

    def __init__(self, known: dict[tuple[str, str], str], *, share: float) -> None:
        self.known, self.share = known, share

    def __call__(self, samples: list[Sample]) -> Sequence[str]:
        return [self.answer(sample) for sample in samples]

    def answer(self, sample: Sample) -> str:
        parts = sample.root.turns[-1].parts
        picture = next(p.ref.name for p in parts if isinstance(p, Media))
        question = " ".join(p.text for p in parts if isinstance(p, Text))
        luck = random.Random(f"{picture}/{question}")
        right = self.known.get((picture, question))
        if right is not None and luck.random() < self.share:
            return right
        return luck.choice(["red", "two", "yes", "no", "A large red circle.", "[0.1, 0.2, 0.5, 0.6]", ""])


def spoken(truth: object) -> str:
    """A truth as a model would say it."""
    if isinstance(truth, dict):
        return truth["captions"][0]
    if isinstance(truth, list):
        return f"[{', '.join(f'{x:.2f}' for x in truth)}]" if isinstance(truth[0], float) else truth[0]
    return str(truth)


def metrics(stage: str, steps: int, *, start: float) -> list[dict[str, object]]:
    """Lines with the keys that `quintet.training.loop` writes."""
    luck = random.Random(stage)
    return [
        {
            "stage": stage,
            "step": n + 1,
            "loss": 0.35 + start * math.exp(-6 * n / steps) + luck.gauss(0, 0.06),
            "grad_norm": 1.0,
            "lr": 1 - n / steps,
            "targets": 900.0,
            "tokens": 5200 + luck.randrange(400),
            "fill": 0.93,
            "dropped": 0,
            "memory": 1_900_000_000 + n * 1000,
            "seconds": round(0.41 * (n + 1), 3),
            "step_seconds": round(0.41 + luck.random() * 0.06, 4),
            "steps": steps,
        }
        for n in range(steps)
    ]


def build(root: Path, *, steps: int = 90, name: str = "run", scenes: Path | None = None) -> Path:
    """A finished run with an evaluation, and the Scenes that it was evaluated on."""
    scenes = scenes or make_scenes(root / "scenes", 50, seed=0)
    run = root / name
    recipe_name, recipe = load_recipe("llava15")
    recipe = at_scale(recipe, "starter")
    run.mkdir()
    facts = {"name": recipe_name, "scale": "starter", "recipe": recipe.to_json(), "data": {}, "seed": 0}
    facts |= {"precision": "auto", "versions": {"quintet": "0.1.0", "torch": "2.13.0"}}
    (run / "recipe.json").write_text(json.dumps(facts))
    lines = metrics("pretrain", steps, start=5.0) + metrics("instruct", 2 * steps, start=2.2)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in ("pretrain", "instruct"):
        (run / "stages" / stage).mkdir(parents=True)
        (run / "stages" / stage / "stage.json").write_text(json.dumps({"name": stage, "steps": steps}))
    for task_name in TASKS:
        task = find_task(task_name, data=scenes)
        known = {(item.media[0].ref.name, item.prompt): spoken(item.truth) for item in task.items()}
        evaluate(Pretender(known, share=0.8), task, limit=120, out=run)
        note_pictures(run, task_name, scenes)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Open and closed tags, and everything that a page could load."""

    VOID = frozenset({"meta", "img", "input", "br", "link", "line", "circle", "polyline", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def test_the_page_is_whole_and_loads_nothing(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert tags.images >= 12
    assert all(load.startswith("data:image/") for load in tags.loads)
    assert "<script" not in html
    assert "url(" not in html
    assert not re.search(r"@import", html)


def test_every_score_stands_with_its_interval_and_both_controls(run: Path, html: str) -> None:
    for task in TASKS:
        result = json.loads((run / "eval" / f"{task}.json").read_text())
        low, high = result["interval"]
        assert f"{result['score']:.3f}" in html
        assert f"{low:.2f} – {high:.2f}" in html
        for control in ("majority", "shuffled"):
            assert f'title="{control}: {result["controls"][control]:.3f}"' in html


def test_chair_stands_nowhere_without_recall(run: Path, html: str, tmp_path: Path) -> None:
    """On a run's page in its tile and its bar, on that of a folder also in the table of scores."""
    result = json.loads((run / "eval" / "scenes.chair.json").read_text())
    recall = f"(recall {result['measures']['recall']:.2f})"
    assert html.count(recall) == 2
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(run)
    assert write_report(tmp_path).read_text().count(recall) == 2 * (2 + 1)


def test_stages_show_what_they_trained_and_what_it_cost(html: str) -> None:
    # By hand: linear layers 192 → 192 twice with biases, 2 × (192 × 192 + 192).
    assert "74,112" in html
    assert "connectors.image at 0.002, llm at 0.001" in html
    assert "36.9 s" in html  # 90 steps of 0.41 s
    assert "1 min 14 s" in html  # 180 steps of 0.41 s
    assert "1.77 GiB" in html  # 1.9e9 bytes


def test_samples_show_right_and_wrong_answers_beside_their_pictures(html: str) -> None:
    cards = re.findall(r'<figure class="sample ([a-z]*)">.*?</figure>', html)
    assert cards.count("right") >= 6
    assert cards.count("wrong") >= 6
    assert "not found" not in html


def test_a_picture_that_is_gone_is_said_in_its_place(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    result = {
        "task": "vqa", "version": "1", "metric": "exact match", "higher_is_better": True, "score": 1.0, "n": 1,
        "interval": [1.0, 1.0], "controls": {"majority": 0.5, "shuffled": None}, "kinds": {"all": 1.0}, "seconds": 2.0,
        "measures": {}, "control_kinds": {"majority": {"all": 0.5}, "shuffled": {}}, "counts": {"items": 1},
    }  # fmt: skip
    line = {"id": "a", "kind": "all", "media": ["gone.png"], "prompt": "<b>What?</b>", "truth": "x", "output": "x"}
    (run / "eval" / "vqa.json").write_text(json.dumps(result))
    (run / "eval" / "vqa.jsonl").write_text(json.dumps(line | {"scored": {"correct": True, "read_as": "x"}}) + "\n")
    html = write_report(run).read_text()
    assert "gone.png was not found" in html
    assert "&lt;b&gt;What?&lt;/b&gt;" in html


def test_an_unfinished_run_without_evaluation_has_a_report(tmp_path: Path) -> None:
    lines = metrics("pretrain", 40, start=5.0)[:7]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(tmp_path).read_text()
    assert "7 of 40" in html
    assert "Scores" not in html


def test_what_an_alignment_changed_stands_with_its_verdict(tmp_path: Path) -> None:
    kept = Row("scenes.vqa", 0.8, 0.79, True, (-0.03, 0.01), guarded=True)
    lost = Row("scenes.caption", 5.0, 1.0, True, (-4.5, -3.5), guarded=True, lost=True)
    nothing = Row("answers in form", 0.0, 0.0, True, (0.0, 0.0), guarded=True)
    free = Row("scenes.chair", 0.2, 0.1, False, (-0.2, -0.05))
    assert [row.verdict for row in (kept, lost, nothing, free)] == ["kept", "lost", "nothing to lose", ""]
    assert Change((nothing, free), 0.05).mute
    assert not Change((kept, nothing), 0.05).mute
    for rows, words in (((kept, free), "no capability was lost"), ((kept, lost), "failed: a capability was lost")):
        write_json(tmp_path / "recipe.json", {"name": "dpo", "from": {"path": "runs/<sft>"}})
        write_json(tmp_path / "change.json", Change(rows, 0.05).to_json())
        html = write_report(tmp_path).read_text(encoding="utf-8")
        assert f"What the alignment changed: {words}" in html
        assert "Against runs/&lt;sft&gt;; a capability may lose 5%" in html
        assert ("<b>lost</b>" in html) is (lost in rows)


def test_a_folder_of_runs_becomes_one_page_with_a_table_of_scores(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(run)
    (tmp_path / "b").symlink_to(run)
    html = write_report(tmp_path).read_text()
    assert "<h1>2 runs</h1>" in html
    assert html.count('<article class="run">') == 2
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    ("scored", "right"),
    [
        ({"correct": False, "read_as": "x"}, False),
        ({"accuracy": 0.9}, True),
        ({"similarity": 0.4}, False),
        ({"hallucinated": [], "mentioned": 3}, True),
        ({"cider": 1.2}, None),
    ],
)
def test_right_and_wrong_follow_each_metrics_own_judgement(scored: dict[str, object], right: bool | None) -> None:
    assert verdict(scored) is right


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.34, 5.7), (1.0, 90.0), (12_000, 14_800), (-3.0, 3.0), (2.0, 2.0)]
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) == 1


def test_a_curve_stays_inside_its_frame_and_leaves_out_what_is_not_finite() -> None:
    points = [(float(n), 1.0 / n) for n in range(1, 2000)] + [(2000.0, math.nan)]
    svg = curve(points, title="a < b", x="step", y="nats")
    assert "a &lt; b" in svg
    assert "nan" not in svg
    line = re.findall(r'points="([^"]+)"', svg)[0]
    places = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert len(places) <= 401
    assert all(0 <= x <= 520 and 0 <= y <= 260 for x, y in places)


def marks(*facts: tuple[str, float, float]) -> list[Mark]:
    return [Mark(name, x, y, y - 0.05, y + 0.05, control=0.2) for name, x, y in facts]


def test_a_scatter_holds_every_mark_inside_its_frame() -> None:
    drawn = scatter(marks(("a<b", 1e9, 0.9), ("c", 1e9, 0.9), ("d", 3e10, 0.1)), title="t", x="FLOPs", y="F1")
    assert drawn.count('class="end"') == drawn.count('class="control"') == drawn.count('class="range"') == 3
    places = [(float(x), float(y)) for x, y in re.findall(r'c[xy]="([\d.-]+)" cy="([\d.-]+)"', drawn)]
    assert len(places) == 6
    assert all(52 <= x <= 506 and 34 <= y <= 218 for x, y in places)
    assert "a&lt;b" in drawn
    assert "a<b" not in drawn
    labels = re.findall(r'class="last" x="([\d.]+)" y="([\d.]+)"', drawn)
    assert len(labels) == len(set(labels)) == 3, "two names at one place move apart"
    assert scatter([Mark("a", 0.0, 0.5, 0.4, 0.6)], title="t", x="FLOPs", y="F1") == "", (
        "a cost of nothing has no place"
    )


def test_ranges_stand_below_each_other_on_one_scale() -> None:
    drawn = ranges([Mark("a<b", 0, 0.2, 0.1, 0.3), Mark("longer name", 0, 0.8, 0.7, 1.0)], title="t")
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert [y for _, y in dots] == [46.0, 70.0]
    lines = [tuple(map(float, ends)) for ends in re.findall(r'class="range" x1="([\d.]+)" x2="([\d.]+)"', drawn)]
    assert all(low < x < high for (low, high), (x, _) in zip(lines, dots, strict=True))
    # 0.1 is as wide everywhere: from 0.1 to 0.3 is two thirds of from 0.7 to 1.
    assert (lines[0][1] - lines[0][0]) * 3 == pytest.approx((lines[1][1] - lines[1][0]) * 2, abs=0.5)
    assert "a&lt;b" in drawn
    assert "a<b" not in drawn
    assert ranges([Mark("a", 0, math.nan, 0.0, 1.0)], title="t") == ""


def test_of_many_marks_those_that_nothing_as_cheap_beats_are_named() -> None:
    """Twelve, ever dearer; only the first, the third and the last are better than all before."""
    scores = [0.3, 0.2, 0.5, 0.4, 0.4, 0.3, 0.2, 0.5, 0.1, 0.2, 0.3, 0.7]
    many = marks(*((f"n{i}", 1e9 * (i + 1), score) for i, score in enumerate(scores)))
    named = re.findall(r'class="last"[^>]*>(\w+)<', scatter(many, title="t", x="x", y="y"))
    assert named == ["n0", "n2", "n11"]
    lower = re.findall(r'class="last"[^>]*>(\w+)<', scatter(many, title="t", x="x", y="y", higher_is_better=False))
    assert lower == ["n0", "n1", "n8"]


def test_the_mean_of_a_curve_reaches_as_far_to_either_side() -> None:
    points = [(float(n), float(n * n)) for n in range(100)]
    # 100 // 40 = 2 on either side: at 10 the mean of 64, 81, 100, 121, 144; at the end that of the last three.
    assert smoothed(points)[10] == (10.0, 102.0)
    assert smoothed(points)[99][1] == pytest.approx((97**2 + 98**2 + 99**2) / 3)
