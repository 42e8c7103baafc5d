"""The text contracts: what is learnt, what is cut, and whether a chat would spell as training does.

What is expected comes from the sample's own turns, never from the tokens that are examined. A chat is replayed: the
training tokens after a prompt are fed one by one to the engine's rule for stopping, and what it would show must be the
answer.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from quintet.data.processor import Processor
from quintet.data.template import Template
from quintet.data.tokenizer import Tokenizer
from quintet.errors import DataError
from quintet.lab.doctor.findings import Finding
from quintet.values import Media, Node, Sample, Text, Tokens, Turn

__all__ = ["answers", "chat", "length", "spell", "through"]


def spell(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Ids as text; control tokens by their names, whatever spaces a decoder would put around them."""
    names = {index: name for name, index in tokenizer.specials.items()}
    pieces: list[str] = []
    run: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in names:
            run.append(token)
            continue
        pieces.append(tokenizer.decode(run) if run else "")
        pieces.append(names[token] if token is not None else "")
        run = []
    return "".join(pieces)


def through(tokenizer: Tokenizer, text: str) -> str:
    """What the tokenizer leaves of a text: not all of them keep every character."""
    return tokenizer.decode(tokenizer.encode(text)[0]) if text else ""


# ---- answers -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Span:
    """Learnt columns side by side, of one node."""

    start: int
    stop: int
    text: str


def answers(sample: Sample, tokens: Tokens, processor: Processor) -> Iterator[Finding]:
    """Compares the learnt tokens, run by run, with the answers of the sample and their end markers.

    Where parts of one answer are learnt and others not, or questions are learnt too, tokens across the border belong to
    either; there each run must only be part of what is said. Of questions and answers together no answer may lack.
    """
    template, tokenizer = processor.template, processor.tokenizer
    wanted = deque(_wanted(sample, template))
    spans = _spans(tokens, tokenizer)
    for item in tokens.items:
        if bool((tokens.weight[item.start : item.start + item.columns] != 0).any()):
            message = f"columns of the {item.kind} {item.ref.name} in the loss"
            yield _at(sample, "answers", "media-learnt", message, "weight 0 on media", "correct the template's weights")
            return
    asked = template.user_weight != 0 and any(turn.role == "user" for turn in sample.turns())
    partly = any(
        isinstance(p, Text) and p.weight == 0 for t in sample.turns() if t.role == "assistant" for p in t.parts
    )
    if asked or partly:
        yield from _within(sample, spans, template)
        learnt = _bare("".join(span.text for span in spans))
        lost = next((want for want in wanted if _bare(want) not in learnt), None)
        if lost is not None and not partly:
            yield _at(
                sample, "answers", "answer-not-learnt", "an answer that is not in the loss", _short(lost), _TEMPLATE
            )
        return
    for span in spans:
        rest = _begin(span.text, tokenizer)
        while wanted and (took := _take(rest, wanted[0], template, tokenizer)) is not None:
            wanted.popleft()
            rest = took
            if not rest:
                break
        if rest:
            cut = span.stop == len(tokens)
            whole = " ".join(span.text for span in spans)
            yield _why(rest, wanted[0] if wanted else None, sample, template, cut=cut, learnt=whole)
            return
    if wanted:
        message = f"no learnt token of the answer {_short(wanted[0])}"
        yield _at(sample, "answers", "answer-not-learnt", message, "every answer in the loss, whole", _TEMPLATE)


def _within(sample: Sample, spans: list[_Span], template: Template) -> Iterator[Finding]:
    ends = {"assistant": template.end} | ({"user": ""} if template.user_weight else {})
    said = [t for t in sample.turns() if t.role in ends]
    whole = _bare("".join(template.words(t.parts, sample.media()) + ends[t.role] for t in said))
    for span in spans:
        if _bare(span.text) not in whole:
            yield _at(
                sample, "answers", "extra-learnt", f"{_short(span.text)} in the loss", "only what is said", _TEMPLATE
            )


_TEMPLATE = "correct the template: an answer's words, and the marker that ends it, have the turn's weight"


def _wanted(sample: Sample, template: Template) -> Iterator[str]:
    """The answers that are learnt, spelt with what the template puts before and after; cut where a medium stands."""
    for turn in sample.turns():
        if turn.role not in ("assistant", "document") or turn.weight == 0:
            continue
        chunk = template.chunk if turn.role == "document" else ""
        said = template.answer if turn.role == "assistant" else ""
        begun = turn.role == "assistant" or template.preface
        for shown, parts in groupby(turn.parts, lambda part: isinstance(part, Media)):
            if shown:
                if said.strip(" "):
                    yield said + chunk
                said, begun = "", True
            elif begun:
                learnt = [part for part in parts if not isinstance(part, Text) or part.weight != 0]
                said += template.words(learnt, sample.media())
        if begun:
            yield said + template.end


def _spans(tokens: Tokens, tokenizer: Tokenizer) -> list[_Span]:
    learnt, node, ids = (tokens.weight != 0).tolist(), tokens.enter.tolist(), tokens.ids.tolist()
    spans: list[_Span] = []
    column = 0
    while column < len(ids):
        start = column
        while column < len(ids) and learnt[column] and node[column] == node[start]:
            column += 1
        if column > start:
            spans.append(_Span(start, column, spell(tokenizer, ids[start:column])))
        else:
            column += 1
    return spans


def _take(rest: str, want: str, template: Template, tokenizer: Tokenizer) -> str | None:
    """What is left of a run after an answer; None if it does not begin with it."""
    body = want.removesuffix(template.end)
    end = want[len(body) :]
    # Some tokenizers do not give back every character; that is a fault of its own, found by the replay.
    for form in (body, through(tokenizer, body)):
        spelt = _begin(form + end, tokenizer)
        if spelt and rest.startswith(spelt):
            return _begin(rest[len(spelt) :], tokenizer)
    return None


def _begin(text: str, tokenizer: Tokenizer) -> str:
    """SentencePiece gives back no space at the beginning of a run."""
    return text.lstrip(" ") if tokenizer.adds_space else text


def _why(rest: str, want: str | None, sample: Sample, template: Template, *, cut: bool, learnt: str) -> Finding:
    """The kind of fault that turns the expected answer into what is learnt.

    `rest` is the run from where it goes wrong, `cut` says that it is the sample's last, `learnt` is all that is learnt.
    """
    found = f"{_short(rest)} in the loss"
    if want is not None:
        bare, wish = rest.strip(" "), want.strip(" ")
        if bare == wish.removesuffix(template.end).strip(" "):
            return _at(sample, "answers", "end-not-learnt", found, _short(want), _END.format(end=template.end))
        if cut and bare != wish and wish.startswith(bare):
            return _at(sample, "answers", "answer-cut", found, _short(want), "never cut tokens; drop the row instead")
        if wish.endswith(bare):
            return _at(sample, "answers", "answer-not-learnt", found, _short(want), _TEMPLATE)
    expected = f"only {_short(want)}" if want is not None else "nothing more"
    said = [(t.role, p.text.strip()) for t in sample.turns() for p in t.parts if isinstance(p, Text)]
    for role, text in said:
        if role in ("user", "system") and text in learnt and not any(text in w for r, w in said if r == "assistant"):
            return _at(sample, "answers", f"{role}-text-learnt", found, expected, _TEMPLATE)
    if want is None or want.strip(" ") in rest:
        return _at(sample, "answers", "extra-learnt", found, expected, _TEMPLATE)
    return _at(sample, "answers", "answer-not-learnt", found, _short(want), _TEMPLATE)


_END = "the model would never learn to stop: give the end marker {end!r} the answer's weight"


# ---- length ------------------------------------------------------------------------------------------------------
def length(sample: Sample, tokens: Tokens, processor: Processor) -> Iterator[Finding]:
    """The first thing of a sample that is missing from its tokens: a medium, or words that the template spells."""
    # What experts tell in words takes words' columns, not a medium's.
    named = sum(medium.text is None for medium in processor.texts.sample(sample).media())
    placed = len(tokens.items)
    if named != placed:
        message = f"{placed} media in the tokens"
        yield _at(sample, "length", "media-lost", message, f"the row's {named}", "correct the template")
        return
    for item in tokens.items:
        over = min(item.columns, item.start + item.columns - len(tokens))
        if over > 0:
            message = f"{over} of the {item.columns} columns of the {item.kind} {item.ref.name} behind the last token"
            yield _at(sample, "length", "media-cut", message, "none", "never cut tokens; drop the row instead")
            return
    kept = _bare(spell(processor.tokenizer, tokens.ids.tolist()))
    for turn in sample.turns():
        spelt = turn.role in ("system", "document") or (turn.role == "user" and processor.template.questions)
        for part in turn.parts:
            if spelt and isinstance(part, Text) and _bare(part.text) not in kept:
                if _bare(through(processor.tokenizer, part.text)) in kept:
                    continue
                message = f"tokens without the {turn.role}'s {_short(part.text)}"
                yield _at(sample, "length", "text-cut", message, "all that is said", "never cut; drop the row instead")
                return


def _bare(text: str) -> str:
    return "".join(text.split())


# ---- chat --------------------------------------------------------------------------------------------------------
def chat(sample: Sample, tokens: Tokens, processor: Processor) -> Iterator[Finding]:
    """The first answer whose open prompt is no prefix of training, or whose replay does not give it back."""
    paths: list[tuple[Node, tuple[Turn, ...]]] = [(sample.root, ())]
    number = 0
    while paths:
        node, before = paths.pop(0)
        seen = (tokens.enter <= number) & (number < tokens.exit)
        ids, weight = tokens.ids[seen].tolist(), tokens.weight[seen].tolist()
        for i, turn in enumerate(node.turns):
            if turn.role == "assistant":
                prompt = Sample(Node((*before, *node.turns[:i])), sample.origin)
                if found := list(_answer(prompt, turn, ids, weight, processor)):
                    yield from found
                    return
        # Children in front: the walk is depth first, as the template numbers nodes.
        paths[:0] = [(child, (*before, *node.turns)) for child in node.children]
        number += 1


def _answer(prompt: Sample, turn: Turn, ids: list[int], weight: list[float], processor: Processor) -> Iterator[Finding]:
    try:
        asked = processor.tokens(prompt, open=True).ids.tolist()
    except DataError as error:
        yield Finding.of(error.at(file=prompt.origin.file, row=prompt.origin.row), contract="chat", stage="")
        return
    tokenizer = processor.tokenizer
    if ids[: len(asked)] != asked:
        at = next((i for i, (a, b) in enumerate(zip(ids, asked, strict=False)) if a != b), min(len(ids), len(asked)))
        message = f"from token {at} on, {_short(spell(tokenizer, asked[at : at + 24]))} in chat"
        expected = f"{_short(spell(tokenizer, ids[at : at + 24]))}, as in training"
        yield _at(prompt, "chat", "prompt-differs", message, expected, "spell both with one template")
        return
    if turn.weight != 0 and (len(asked) >= len(weight) or weight[len(asked)] == 0):
        message = f"{_short(spell(tokenizer, ids[len(asked) : len(asked) + 8]))} after the prompt, which is not learnt"
        expected = "the answer's first token, learnt"
        yield _at(prompt, "chat", "prompt-short", message, expected, "a prompt must end where learning begins")
        return
    yield from _replay(prompt, turn, ids[len(asked) :], processor)


def _replay(prompt: Sample, turn: Turn, ids: list[int], processor: Processor) -> Iterator[Finding]:
    tokenizer, template = processor.tokenizer, processor.template
    answer = template.words(turn.parts, prompt.media()).strip()
    rule = processor.stops()
    last = next((n for n in range(1, len(ids) + 1) if rule(ids[:n])), None)
    end = template.stop_id(tokenizer)
    shown = processor.text([i for i in ids[:last] if i != end])
    if template.end and template.end not in tokenizer.specials:
        shown = shown.split(template.end)[0]
    shown = shown.strip()
    if last is not None and shown == answer:
        return
    found, expected = f"{_short(shown)} from chat", f"the answer {_short(answer)}"
    if last is None or (shown.startswith(answer) and answer):
        do = f"the engine must stop at {template.end!r}; end the answer with it"
        yield _at(prompt, "chat", "end-missing", f"{found}, which does not stop after the answer", expected, do)
    elif shown == through(tokenizer, answer).strip():
        yield _at(prompt, "chat", "lossy-tokenizer", found, expected, "use a tokenizer that spells these characters")
    elif answer.startswith(shown):
        do = (
            f"the answer holds the end marker {template.end!r}; take it out, or choose a marker that is a control token"
        )
        yield _at(prompt, "chat", "end-inside-answer", found, expected, do)
    else:
        yield _at(prompt, "chat", "answer-changed", found, expected, "correct the template")


# ---- words -------------------------------------------------------------------------------------------------------
def _at(sample: Sample, contract: str, fault: str, found: str, expected: str, do: str) -> Finding:
    here = sample.origin
    return Finding(contract=contract, fault=fault, found=found, expected=expected, do=do, file=here.file, row=here.row)


def _short(text: str) -> str:
    r"""A text in quotes, at most 80 characters of it.

    >>> _short("a\nb")
    "'a\\nb'"
    """
    return repr(text if len(text) <= 80 else f"{text[:50]} … {text[-27:]}")
