"""The command that everybody starts with, on few pictures: half a minute."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.lab import quickstart


@pytest.mark.slow
def test_quickstart_goes_from_nothing_to_answers_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it scores after so few pictures is not looked at here."""
    monkeypatch.setattr(quickstart, "TASKS", {"scenes.vqa": 30, "scenes.pope": 60})
    args = ["quickstart", "--out", str(tmp_path / "out"), "--pictures", "100"]
    first = CliRunner().invoke(app, args)
    assert first.exit_code == 0, first.output
    run = tmp_path / "out" / "run"
    # Lines are folded where no terminal says how wide it is.
    said = " ".join(first.stdout.split())
    for words in ("scenes.vqa", "majority", "shuffled", "report.html", "quintet chat"):
        assert words in said
    html = (run / "report.html").read_text()
    assert html.count("data:image/png") >= 4
    assert "not found" not in html
    result = json.loads((run / "eval" / "scenes.vqa.json").read_text())
    assert result["n"] == 30
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 0, again.output
    assert "finished already" in again.stdout
    assert json.loads((run / "eval" / "scenes.vqa.json").read_text())["score"] == result["score"]
