"""The tokenizer: control tokens are inserted by id, text is text, and offsets say where a token stands. About 2 s."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from conftest import byte_tokenizer
from quintet.data.tokenizer import Tokenizer
from quintet.errors import CheckpointError, ConfigError


def sentencepiece_like() -> Tokenizer:
    """Puts a space before every run, as Llama's tokenizer does: "a b" is ▁a ▁b."""
    backend = Backend(models.WordLevel({"▁a": 0, "▁b": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return Tokenizer(backend, bos="<s>", eos="</s>")


def test_control_tokens_are_ids_and_never_come_from_text(letters: Tokenizer) -> None:
    ids, _ = letters.encode("a</s>")
    assert len(ids) == 5
    assert letters.id("</s>") not in ids
    assert letters.decode(ids) == "a</s>"


def test_offsets_are_characters_of_the_text(letters: Tokenizer) -> None:
    """é is two bytes and so two tokens; both stand for character 1."""
    ids, offsets = letters.encode("aéb")
    assert len(ids) == 4
    assert offsets == [(0, 1), (1, 2), (1, 2), (2, 3)]


def test_a_template_is_cut_at_its_control_tokens_longest_first() -> None:
    tokenizer = byte_tokenizer("<x>", "<x>>")
    assert tokenizer.split("a<x>>b<x></s>") == ["a", "<x>>", "b", "<x>", "</s>"]


def test_a_space_that_the_backend_adds_by_itself_is_not_there_twice() -> None:
    """ "a" and " a" are both ▁a; the offsets still count the characters of the text that was given."""
    tokenizer = sentencepiece_like()
    assert tokenizer.adds_space
    assert tokenizer.encode("a b") == ([0, 1], [(0, 1), (1, 3)])
    assert tokenizer.encode(" a b") == ([0, 1], [(1, 2), (2, 4)])


def test_a_backend_that_adds_no_space_keeps_the_leading_one(letters: Tokenizer) -> None:
    assert not letters.adds_space
    assert len(letters.encode(" a")[0]) == 2


def test_added_tokens_get_new_ids_and_are_added_once() -> None:
    tokenizer = byte_tokenizer()
    before = tokenizer.vocab
    tokenizer.add("<new>", "</s>")
    tokenizer.add("<new>")
    assert tokenizer.vocab == before + 1
    assert tokenizer.id("<new>") == before


def test_padding_is_the_end_token_where_there_is_none_of_its_own() -> None:
    tokenizer = sentencepiece_like()
    assert tokenizer.pad_id == tokenizer.id("</s>")


def test_the_fingerprint_follows_the_content() -> None:
    assert byte_tokenizer().fingerprint == byte_tokenizer().fingerprint != byte_tokenizer("<new>").fingerprint


def test_a_saved_tokenizer_comes_back_whole_and_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    mine = byte_tokenizer("<|user|>")
    mine.save(tmp_path)
    back = Tokenizer.load(tmp_path)
    assert (back.fingerprint, back.specials, back.pad_id, back.bos, back.eos) == (
        mine.fingerprint,
        mine.specials,
        mine.pad_id,
        "<s>",
        "</s>",
    )
    assert back.encode("a</s>é") == mine.encode("a</s>é")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("aé", add_special_tokens=False) == mine.encode("aé")[0]


def test_a_token_that_is_not_there_is_named_with_those_that_are(letters: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"no special token '<x>'; it has </s>, <pad>, <s>"):
        letters.id("<x>")


@pytest.mark.parametrize("content", [None, "{}", "not json", "[1]", '{"added_tokens": []}'])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "folder"
    if content is not None:
        folder.mkdir()
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="folder"):
        Tokenizer.load(folder)
