"""CIDEr-D against pycocoevalcap: equal on equal words, and equal through its own (Java) tokenizer on plain captions."""

import random
import shutil

import numpy as np
import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from quintet.evaluation.metrics.cider import Cider, cider, tokenise

# Both add the same float64 terms in different orders; the worst case measured over 300 corpora is 1.8e-15.
TOLERANCE = 1e-9

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="their tokenizer is a Java program")

WORDS = [
    "a",
    "the",
    "two",
    "red",
    "blue",
    "cat",
    "dog",
    "mat",
    "on",
    "in",
    "under",
    "is",
    "sits",
    "runs",
    "near",
    "and",
]


def reference(captions: list[str], references: list[list[str]]) -> np.ndarray:
    """pycocoevalcap's score of each picture, from text split at spaces."""
    scorer = CiderScorer(n=4, sigma=6.0)
    for caption, texts in zip(captions, references, strict=True):
        scorer += (caption, texts)
    return scorer.compute_score()[1]


def corpus(seed: int) -> tuple[list[str], list[list[str]]]:
    """Random captions of 0 to 14 words, some of them copies of a reference, one to five references a picture."""
    rng = random.Random(seed)

    def text(shortest: int) -> str:
        return " ".join(rng.choices(WORDS[: rng.randint(3, len(WORDS))], k=rng.randint(shortest, 14)))

    references = [[text(1) for _ in range(rng.randint(1, 5))] for _ in range(rng.randint(1, 12))]
    captions = [rng.choice(texts) if rng.random() < 0.3 else text(0) for texts in references]
    return captions, references


@pytest.mark.parametrize("seed", range(30))
def test_equal_words_score_equal(seed: int) -> None:
    captions, references = corpus(seed)
    ours = cider([c.split() for c in captions], [[r.split() for r in texts] for texts in references])
    np.testing.assert_allclose(ours, reference(captions, references), rtol=0, atol=TOLERANCE)


CAPTIONS = [
    "A man's riding a wave, on top of a surfboard.",
    "Two dogs don't play with a black-and-white ball!",
    "A small red circle and a large blue star.",
    'There is 1 bus; it\'s parked near the "old" church...',
    "The cat sits on the mat; a tabby: it is asleep?",
    "A stop sign -- red & white -- at 5 p.m. in the rain",
    "People can't see the clock that reads 3.45.",
    "An orange, a pear and half an apple on a plate",
    "They're eating pizza at the women's table",
    "No objects at 5:30 o'clock, e.g. 1,000 birds",
]


@needs_java
def test_our_tokens_are_those_of_the_penn_treebank_tokenizer_on_captions(capfd: pytest.CaptureFixture[str]) -> None:
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(CAPTIONS)})
    capfd.readouterr()
    assert [" ".join(tokenise(text)) for text in CAPTIONS] == [theirs[i][0] for i in range(len(CAPTIONS))]


@needs_java
def test_the_whole_metric_equals_tokenizer_and_scorer_together(capfd: pytest.CaptureFixture[str]) -> None:
    """Raw captions in, through their Java tokenizer and their scorer; ours through `Cider.judge`."""
    answers = [*CAPTIONS[1:], CAPTIONS[0]]
    truths = [[text, CAPTIONS[(i + 3) % len(CAPTIONS)]] for i, text in enumerate(CAPTIONS)]
    told = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(answers)})
    true = PTBTokenizer().tokenize({i: [{"caption": t} for t in texts] for i, texts in enumerate(truths)})
    capfd.readouterr()
    expected = reference([told[i][0] for i in range(len(answers))], [true[i] for i in range(len(truths))])
    np.testing.assert_allclose(Cider().judge(answers, truths).sums[:, 0], expected, rtol=0, atol=TOLERANCE)
