"""The command line: what scripts rely on, exit codes, and how an error looks. Tiny models; under a minute."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from conftest import picture
from quintet.cli.app import app
from quintet.cli.training import _lost, files
from quintet.data.scenes import make_scenes
from quintet.errors import ConfigError, QuintetError
from quintet.lab.listing import listing, markdown
from quintet.lab.recipe import recipe_names
from quintet.model.generate import Sampling
from quintet.serving.engine import Engine
from quintet.values import Sample

ROOT = Path(__file__).parents[2]


def run(*args: str | Path, input: str | None = None) -> Result:
    """A command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], input=input)


def ok(*args: str | Path, input: str | None = None) -> str:
    """The output of a command that must succeed."""
    result = run(*args, input=input)
    assert result.exit_code == 0, f"{args}: {result.output} {result.exception!r}"
    return result.stdout


def refused(*args: str | Path) -> str:
    """The one line on stderr of a command that must fail with 1."""
    result = run(*args)
    assert result.exit_code == 1, f"{args}: {result.exit_code}, {result.output} {result.exception!r}"
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("cli") / "scenes", 24, seed=3, splits={"val": 2, "test": 12})


@pytest.fixture(scope="module")
def trained(scenes: Path) -> Path:
    """A finished run of two steps a stage, beside its Scenes."""
    out = scenes.parent / "run"
    ok("train", "llava15", "--scale", "tiny", "--scenes", scenes, "--out", out, "--precision", "fp32")
    return out


# ---- start -------------------------------------------------------------------------------------------------------
def fresh(code: str, *args: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Python in a process of its own, and the processor time that it took."""
    before = os.times()
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    after = os.times()
    return done, after.children_user + after.children_system - before.children_user - before.children_system


def test_help_is_there_at_once_and_loads_nothing_heavy() -> None:
    """Half a second of processor time; measured 0.24 s. Wall time would measure what else the machine does."""
    code = """
import atexit, sys
from quintet.cli import main
heavy = ("torch", "numpy", "transformers", "PIL", "sklearn", "matplotlib")
atexit.register(lambda: print("loaded:", [name for name in heavy if name in sys.modules]))
main()
"""
    done, seconds = fresh(code, "--help")
    assert done.returncode == 0
    assert "loaded: []" in done.stdout
    assert seconds < 0.5
    commands = ["quickstart", "recipes", "show", "doctor", "train", "eval", "chat", "report", "compare", "import"]
    commands += ["export", "papers"]
    assert all(command in done.stdout for command in commands)


@pytest.mark.parametrize("command", ["train", "eval", "chat", "report", "show", "data", "data mix", "starter build"])
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage" in ok(*command.split(), "--help")


def test_the_version_is_the_packages() -> None:
    assert ok("--version") == "quintet 0.1.0\n"


# ---- errors ------------------------------------------------------------------------------------------------------
def test_a_fault_is_one_line_that_says_what_to_do() -> None:
    assert "did you mean 'llava15'?" in refused("show", "llava51")
    assert "no scale 'tiney'" in refused("show", "llava", "--scale", "tiney")


def test_a_traceback_is_shown_when_it_is_asked_for() -> None:
    result = run("--traceback", "show", "llava51")
    assert isinstance(result.exception, QuintetError)


def test_a_file_that_cannot_be_written_is_a_fault_and_no_crash(trained: Path) -> None:
    assert "there is no folder" in refused("report", trained, "--out", trained / "no" / "such" / "folder.html")


@pytest.mark.parametrize(
    "args", [["shw"], ["show"], ["show", "llava", "--jason"], ["data", "check", "a", "--limit", "0"]]
)
def test_wrong_usage_exits_with_2(args: Sequence[str]) -> None:
    assert run(*args).exit_code == 2


def test_a_closed_pipe_ends_quietly() -> None:
    """`quintet recipes | head -1`: whoever reads goes away before all is written."""
    code = "from quintet.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "recipes", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# ---- looking -----------------------------------------------------------------------------------------------------
def test_recipes_are_listed_for_people_and_for_scripts() -> None:
    rows = json.loads(ok("recipes", "--json"))
    assert [row["name"] for row in rows] == recipe_names()
    assert {"name", "inputs", "outputs", "connector", "fusion", "llm", "stages", "paper"} <= rows[0].keys()
    table = ok("recipes")
    assert all(name in table for name in recipe_names())
    assert ok("recipes", "--markdown").strip() == markdown(listing())


def test_recipes_cuts_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert "…" not in ok("recipes")


def test_show_says_what_it_does_not_count_or_know() -> None:
    fuyu = ok("show", "fuyu")
    assert "batches of 128, number of steps not published" in fuyu
    assert "2,340 tokens per image of 1080 × 1920 pixels" in fuyu
    adapter = ok("show", "llama_adapter")
    assert "1 token per image" in adapter
    assert "2.5% above the printed 1.2 M: 1.23 M, which is 1.2 M once rounded" in adapter
    assert "29 times the printed 1.2 M: 1.2 M is the variant without pictures" in adapter
    assert "connectors.image: 33,562,624 at 0.009" in adapter
    captioner = " ".join(ok("show", "captioner").split())
    assert "6,738,415,616 and the experts', which are not counted" in captioner
    assert "the columns that their words take, are not counted" in captioner
    assert "llm (LoRA of rank 8): 4,194,304 at 2e-05" in ok("show", "mplug_owl")


def test_show_prints_the_papers_figures_and_whether_they_agree() -> None:
    text = ok("show", "llava15")
    assert "20,979,712  ✓ = arithmetic: 1024 · 4096 + 4096 + 4096 · 4096 + 4096" in text
    assert "576 tokens per image of 336 × 336 pixels  ✓" in text
    assert "576 tokens an image from the penultimate layer" in text, "what the recipe's file says of it"
    data = json.loads(ok("show", "llava15", "--json"))
    assert data["parts"]["connectors.image"] == {"parameters": 20_979_712}
    assert data["tokens"] == {"image": 576}
    assert {"trainable", "share"} <= data["stages"]["pretrain"].keys()
    assert data["memory_bytes"] > 2**30
    assert data["flops_per_sample"] > 1e12


def test_the_doctor_passes_a_healthy_file_and_fails_a_sick_one(scenes: Path, tmp_path: Path) -> None:
    assert json.loads(ok("doctor", scenes / "train.json", "--json"))["ok"]
    sick = tmp_path / "sick.json"
    sick.write_text(json.dumps([{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": ""}]}]))
    result = run("doctor", sick)
    assert result.exit_code == 1
    assert "empty-answer" in result.stdout


# ---- a run -------------------------------------------------------------------------------------------------------
def test_training_leaves_a_model_and_says_what_is_next(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} >= {"recipe.json", "metrics.jsonl", "model", "stages"}
    assert json.loads((trained / "recipe.json").read_text())["name"] == "llava15"
    assert "go on with --resume" in refused("train", "llava15", "--scale", "tiny", "--out", trained)
    again = ok("train", "llava15", "--scale", "tiny", "--out", trained, "--precision", "fp32", "--resume")
    assert "stage pretrain is finished already" in again


def test_training_learns_from_a_file_of_ones_own(scenes: Path, tmp_path: Path) -> None:
    common = (
        "train",
        "llava15",
        "--scale",
        "tiny",
        "--precision",
        "fp32",
        "--features",
        "off",
        "--out",
        tmp_path / "run",
    )
    ok(*common, "--data", scenes / "val.json", "--stages", "instruct", "--set", "stages.instruct.steps=1")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("instruct", 1)]


def test_settings_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    common = ("train", "llava15", "--scale", "tiny", "--out", tmp_path / "run")
    assert "did you mean 'batch'?" in refused(*common, "--set", "stages.instruct.bach=3")
    assert "no stage 'instruckt'" in refused(*common, "--data", "instruckt=a.json")
    assert "no stage 'second'" in refused(*common, "--stages", "second")
    assert run(*common, "--precision", "fp8").exit_code == 2
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("model"))


def test_data_is_for_the_last_stage_or_for_one_by_name(tmp_path: Path) -> None:
    stages = ["pretrain", "instruct"]
    assert files(["a.json", "pretrain=b.json"], stages) == {"": Path("a.json"), "pretrain": Path("b.json")}
    odd = tmp_path / "pretrain=c.json"
    odd.touch()
    assert files([str(odd)], stages) == {"": odd}
    with pytest.raises(ConfigError, match="twice"):
        files(["a.json", "b.json"], stages)


def test_ctrl_c_writes_a_checkpoint_and_exits_with_130(scenes: Path, tmp_path: Path) -> None:
    """In a process of its own: signals belong to the main thread. Then --resume finishes the run."""
    out = tmp_path / "run"
    args = ["train", "llava15", "--scale", "tiny", "--scenes", str(scenes), "--out", str(out), "--precision", "fp32"]
    args += ["--features", "off", "--set", "stages.pretrain.steps=100000"]
    code = "import torch; torch.set_num_threads(1); from quintet.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *args], stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        said = child.stderr.read()
    assert child.returncode == 130
    assert "go on with --resume" in said
    assert "Traceback" not in said
    assert len(list((out / "checkpoints").glob("pretrain-*/state.json"))) == 1


def test_evaluation_prints_scores_with_both_controls_and_writes_them(trained: Path) -> None:
    text = ok("eval", trained, "--tasks", "scenes.vqa,scenes.pope", "--limit", "40")
    assert all(word in text for word in ("scenes.vqa", "scenes.pope", "majority", "shuffled", "95 % interval"))
    few = ok("eval", trained, "--tasks", "scenes.pope,scenes.chair", "--limit", "6")
    assert "(recall 0." in few
    assert " of 6" in few
    assert "of one kind" in few
    data = json.loads(ok("eval", trained, "--tasks", "scenes.digits", "--json"))
    written = json.loads((trained / "eval" / "scenes.digits.json").read_text())
    assert {k: v for k, v in data["scenes.digits"].items() if k != "seconds"} == {
        k: v for k, v in written.items() if k != "seconds"
    }
    assert {"score", "interval", "n", "controls", "kinds", "version", "seconds"} <= written.keys()
    assert "did you mean 'scenes.vqa'?" in refused("eval", trained, "--tasks", "scene.vqa")


def test_a_report_follows_an_evaluation(trained: Path) -> None:
    ok("eval", trained, "--tasks", "scenes.ocr", "--limit", "10")
    assert ok("report", trained).strip() == str(trained / "report.html")
    html = (trained / "report.html").read_text()
    assert "scenes.ocr" in html
    assert "not found" not in html


def test_one_question_has_one_answer(trained: Path, scenes: Path) -> None:
    image = next((scenes / "images" / "test").iterdir())
    asked = ("chat", trained, "--image", image, "-p", "What is it?", "--max-tokens", "4")
    assert ok(*asked) == ok(*asked)
    assert "error" in refused("chat", trained, "--image", scenes / "train.json", "-p", "What is it?")


def test_what_was_lost_is_said_with_its_reasons() -> None:
    assert _lost({}, "samples dropped") == ""
    assert (
        _lost({"too-long": 1200, "broken": 1}, "samples dropped")
        == ", 1,201 samples dropped (1 broken, 1,200 too-long)"
    )


def test_all_pictures_that_are_named_are_shown_in_their_order_and_of_an_animation_the_first_frame(
    trained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sample] = []

    def stream(self: Engine, sample: Sample, *, sampling: Sampling | None = None) -> Iterator[str]:
        asked.append(sample)
        return answer(self, sample, sampling=sampling)

    answer = Engine.stream
    monkeypatch.setattr(Engine, "stream", stream)
    one = next((scenes / "images" / "test").iterdir())
    picture(1).save(tmp_path / "two.gif", save_all=True, append_images=[picture(2)])
    shown = ("--image", one, "--image", tmp_path / "two.gif")
    result = run("chat", trained, *shown, "-p", "Which is larger?", "--max-tokens", "2")
    assert result.exit_code == 0, result.output
    assert [medium.ref.name for medium in asked[0].media()] == [one.name, "two.gif"]
    assert result.stderr.splitlines() == ["two.gif has 2 frames; the first is shown"]


def test_a_session_goes_on_after_a_mistake_and_ends_with_the_input(trained: Path, scenes: Path) -> None:
    image = next((scenes / "images" / "test").iterdir())
    lines = ["/image", "/image nowhere.png", f"/image {image}", "What is it?", "/help", "/new", "And now?", ""]
    result = run("chat", trained, "--max-tokens", "3", input="\n".join(lines))
    assert result.exit_code == 0
    assert "/image PATH shows a picture; name its file" in result.stderr
    assert "nowhere.png: no such picture" in result.stderr
    assert result.stderr.count("no such picture") == 1
    assert "/image PATH, /new, /exit" in result.stderr
    assert run("chat", trained, input="/exit\nnever asked\n").exit_code == 0


def test_a_folder_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    assert "no finished model" in refused("chat", tmp_path, "-p", "Hello?")


def test_a_model_goes_out_and_comes_back_with_its_logits(trained: Path, tmp_path: Path) -> None:
    assert "largest difference of a logit" in ok("export", trained, "--out", tmp_path / "llava")
    assert "largest difference of a logit" in ok("import", tmp_path / "llava", "--out", tmp_path / "back")
    for folder in ("llava", "back"):
        parity = json.loads((tmp_path / folder / "parity.json").read_text())
        assert parity["max_abs_logit_difference"] < 1e-4
    assert "expected one of 'llava'" in refused("import", trained / "model", "--out", tmp_path / "no")


# ---- data --------------------------------------------------------------------------------------------------------
def test_data_is_made_checked_and_viewed(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    ok("data", "make", "scenes", "--out", folder, "--n", "3", "--seed", "5")
    report = json.loads(ok("data", "check", folder / "train.json", "--json"))
    assert (report["rows"], report["faults"]) == (3, [])
    assert "row 2" in ok("data", "view", folder / "train.json", "--row", "2", "-n", "1")
    ok("data", "view", folder / "train.json", "--html", tmp_path / "sheet.html")
    assert (tmp_path / "sheet.html").read_text().count("<img") == 3
    assert run("data", "make", "shapes", "--out", tmp_path / "x").exit_code == 2
    assert "name another one" in refused("data", "make", "scenes", "--out", folder)


def test_a_check_names_row_and_field_and_exits_with_1(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    good = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
    bad = {"conversations": [{"from": "human", "value": "\x1b[31mWhy?"}, {"from": "robot", "value": "So."}]}
    file.write_text(json.dumps([good, bad]))
    result = run("data", "check", file)
    assert result.exit_code == 1
    assert "row 2, field conversations[1].from: unknown-role" in result.stdout
    assert "2 rows, 1 good, 1 faulty" in result.stdout
    found = json.loads(run("data", "check", file, "--json").stdout)
    assert found["faults"][0]["row"] == 2
    assert "\x1b" not in ok("data", "view", file)
    file.write_text(json.dumps([good, {"conversation": "\x1bWhy?"}]))
    assert '{"conversation": "\\u001bWhy?"}' in ok("data", "view", file)


def test_data_is_converted_filtered_and_mixed(scenes: Path, tmp_path: Path) -> None:
    ok("data", "convert", scenes / "train.json", "--out", tmp_path / "a.jsonl")
    ok("data", "filter", scenes / "train_captions.json", "--out", tmp_path / "b.jsonl", "--min-answer", "2")
    facts = json.loads(
        ok(
            "data",
            "mix",
            tmp_path / "a.jsonl=3",
            tmp_path / "b.jsonl=1",
            "--size",
            "8",
            "--out",
            tmp_path / "m.jsonl",
            "--json",
        )
    )
    assert facts["rows_by_source"] == {"a.jsonl": 6, "b.jsonl": 2}
    assert json.loads(ok("data", "check", tmp_path / "m.jsonl", "--json"))["faults"] == []
    # By the root: 24 rows and 6 weigh 2 to 1.
    ok("data", "mix", tmp_path / "a.jsonl=1", "--size", "6", "--out", tmp_path / "few.jsonl")
    files, root = (tmp_path / "a.jsonl", tmp_path / "few.jsonl"), ("--power", "0.5", "--size", "9", "--json")
    facts = json.loads(ok("data", "mix", *files, *root, "--out", tmp_path / "r.jsonl"))
    assert facts["rows_by_source"] == {"a.jsonl": 6, "few.jsonl": 3}
    assert run("data", "mix", f"{files[0]}=1", f"{files[1]}=1", *root, "--out", tmp_path / "n.jsonl").exit_code == 2
    unequal = ("data", "mix", tmp_path / "a.jsonl=3", tmp_path / "b.jsonl", "--out", tmp_path / "n.jsonl")
    assert run(*unequal).exit_code == 2
    assert run("data", "mix", tmp_path / "a.jsonl=much", "--out", tmp_path / "n.jsonl").exit_code == 2
