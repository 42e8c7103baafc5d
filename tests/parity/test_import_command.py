"""`quintet import`: a run that cannot talk is said to be one at once, and what would be ignored is refused."""

import json
import shutil
from pathlib import Path

import pytest
import test_blip2_retrieval
import test_idefics
import test_spoken
from llava_fixtures import published, tokenizer_of_bytes
from typer.testing import CliRunner, Result

from conftest import published_tokenizer
from quintet.cli.app import app
from quintet.errors import CheckpointError
from quintet.model.convert import kind_of
from quintet.serving.engine import Engine


def imported(source: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["import", str(source), "--out", str(out), *more])


def warned(source: Path, out: Path) -> str:
    """The one warning of an import that must succeed; the run cannot be opened for just that reason."""
    done = imported(source, out)
    assert done.exit_code == 0, done.output
    [line] = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    begin, _, why = line.partition(" cannot be talked to or measured: ")
    assert begin == "warning: the run"
    with pytest.raises(CheckpointError) as caught:
        Engine.open(out)
    assert str(caught.value) == why
    return why


# ---- runs that cannot talk ---------------------------------------------------------------------------------------
def test_a_folder_without_a_tokenizer_is_said_to_have_none(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path / "theirs")
    why = warned(tmp_path / "theirs", tmp_path / "run")
    assert why.endswith("run/model holds no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    # As it says: with the files the run talks.
    tokenizer_of_bytes(tmp_path / "run" / "model")
    Engine.open(tmp_path / "run")


def test_a_retrieval_folder_without_a_tokenizer_is_said_to_have_none(tmp_path: Path) -> None:
    test_blip2_retrieval.published(tmp_path / "theirs")
    assert "captions holds no tokenizer" in warned(tmp_path / "theirs", tmp_path / "run")


def test_the_tokenizer_of_the_queries_is_missed(tmp_path: Path) -> None:
    spoken = test_spoken.blip2(tmp_path / "theirs", "instructblip", "llama", side=28)
    assert "warning" not in imported(spoken.folder, tmp_path / "whole").output
    shutil.rmtree(spoken.folder / "qformer_tokenizer")
    assert "expected qformer_tokenizer/" in warned(spoken.folder, tmp_path / "run")


def test_tokens_that_the_template_writes_are_missed(tmp_path: Path) -> None:
    words = published_tokenizer("<fake_token_around_image>", "<image>", bos="<s>")
    first = words.convert_tokens_to_ids("<fake_token_around_image>")
    test_idefics.reference(vocab=first).save_pretrained(tmp_path / "theirs")
    words.save_pretrained(tmp_path / "theirs")
    assert "has no <end_of_utterance>, which the template 'idefics_instruct' writes" in warned(
        tmp_path / "theirs", tmp_path / "run"
    )


# ---- options without use -----------------------------------------------------------------------------------------
def test_a_folder_of_transformers_is_told_from_a_release(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    published().save_pretrained(theirs)
    done = imported(theirs, tmp_path / "run", "--as", "llava15")
    assert done.exit_code == 1
    assert "config.json has model_type 'llava' as transformers saves it" in done.stderr
    assert "leave out --as llava15" in done.stderr
    assert kind_of(theirs) == "llava"
    # LLaVA's authors write the same model_type, with a text model's settings beside it.
    (theirs / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "clip"}))
    assert kind_of(theirs) == ""
    (theirs / "config.json").unlink()
    assert kind_of(theirs) == ""


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path / "llava")
    done = imported(tmp_path / "llava", tmp_path / "run", "--download")
    assert done.exit_code == 2
    assert "--download" in done.stderr
    test_blip2_retrieval.published(tmp_path / "itm")
    done = imported(tmp_path / "itm", tmp_path / "run", "--template", "llava")
    assert done.exit_code == 2
    assert "--template" in done.stderr
    assert not (tmp_path / "run").exists()
