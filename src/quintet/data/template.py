"""From a tree of turns to tokens: how a conversation is spelt, and which of its tokens are learnt.

Ids and weights are made together, piece by piece; rendered text is never parsed back. Training and chat use the same
function: a prompt is a sample whose last answer is left `open`, so it is a prefix of the training tokens by
construction. Every medium reserves exactly the columns that the model's config computes for its size.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from quintet.config.base import Config
from quintet.data.columns import START, Measure, Piece, Rows, Tail, Words
from quintet.data.frame import Frame
from quintet.data.identifier import Identifier, identified
from quintet.data.media import image_size
from quintet.data.regions import Numbers, RegionFormat
from quintet.data.tokenizer import Tokenizer
from quintet.data.trees import beside
from quintet.errors import ConfigError, DataError
from quintet.values import Media, Node, Part, Region, Sample, Text, Tokens, Turn

__all__ = ["DECIMALS", "Frame", "Measure", "Template"]

_Said = Text | Media | list[Region]
"""A turn's parts, regions of one phrase together."""


DECIMALS = Numbers(place=Frame(before="[", after="]"), also=", ", decimals=2, comma=", ", between=", ")
"""[0.12, 0.34, 0.56, 0.78], and several as [..], [..]: what a template writes that names no format."""


@dataclass(frozen=True, kw_only=True)
class Template(Config):
    """The published spelling of a system's conversations, as data."""

    name: str
    system: str = ""
    """The system message; a sample's own replaces it."""
    system_frame: Frame = Frame(after=" ")
    user: Frame = Frame()
    assistant: str = ""
    """The header that an answer follows. It is never learnt."""
    answer: str = " "
    """What stands between the header and the answer, learnt with it."""
    end: str
    """The end marker, learnt; generation stops at it."""
    bos: bool = True
    media: Mapping[str, Frame] = field(default_factory=dict)
    """Frames around media, such as <Img> … </Img>; {n} is the number of the medium in its conversation, from 1."""
    joint: str = "\n"
    """Between a medium and the text next to it."""
    places: Literal["each", "inner"] = "each"
    """The positions of a medium's columns: each its own, or all between the first and the last share one (CogVLM)."""
    blank: str = ""
    """What stands before a first user's turn that has no medium: LaVIN says that there is none."""
    place: Literal["written", "front", "random", "outside"] = "written"
    """Where a turn's media stand: as written, before its text, (by the sample's hash) before or after it, or outside:
    before the frame too."""
    user_weight: float = 0.0
    """How much users' words are learnt: 0 in every published system; pre-training on plain text learns them too."""
    questions: bool = True
    """Whether users' words are spelt; without them only their media are (LLaVA's plain pre-training)."""
    between: str = ""
    """Before every user's turn but the first, never learnt."""
    chunk: str = ""
    """Between the words of a document and the medium after them, learnt: Flamingo ends every chunk."""
    preface: bool = True
    """Whether a document's words before its first medium are learnt. Where they are not, no chunk ends there."""
    identifiers: tuple[Identifier, ...] = ()
    """What a question about a medium begins with, by what it asks; the first that fits."""
    added: tuple[str, ...] = ()
    """Special tokens that the system adds to the LLM's tokenizer; those that it has already are not added twice."""
    regions: RegionFormat = DECIMALS
    """How regions are spelt, in questions and in answers."""
    pointer: str = ""
    """What follows a region in a user's turn: a special token, whose column takes the region's feature (Ferret)."""

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Every token that is added to the tokenizer, in order: the template's, then its region format's."""
        return tuple(dict.fromkeys((*self.added, *self.regions.added_tokens)))

    def __post_init__(self) -> None:
        if self.pointer and self.pointer.strip() not in self.added:
            raise ConfigError(f"the pointer {self.pointer!r} is not one of the added tokens {self.added}")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must have: the end marker, if it is in angle brackets, and the added."""
        ends = (self.end,) if self.end.startswith("<") and self.end.endswith(">") else ()
        return tuple(dict.fromkeys((*ends, *self.added_tokens)))

    # ---- rendering ----------------------------------------------------------------------------------------------
    def words(self, parts: Sequence[Part], media: Sequence[Media]) -> str:
        """What is said in these parts of a turn, as text: regions in the template's spelling, media left out."""
        said = (self._said(part, media) for part in self._grouped(parts) if not isinstance(part, Media))
        return "".join(piece.text for pieces in said for piece in pieces)

    def read_regions(self, text: str, media: Sequence[Media]) -> list[Region]:
        """The regions in an answer about the first of `media`, in shares of it; what is malformed is left out."""
        # What could not be asked has no answer, and perhaps no picture whose size can be read.
        if not media or not self.regions.parse(text):
            return []
        return self.regions.parse(text, size=self._size(Region("points", ()), media))

    def _turn(self, turn: Turn, media: Sequence[Media], flip: bool) -> list[Piece]:
        if turn.role == "system":
            return []
        if turn.role == "assistant":
            header = Piece(self.assistant, control=True)
            learnt: list[Piece] = []
            for part in self._grouped(turn.parts):
                if isinstance(part, Media):
                    learnt.append(Piece(medium=part))
                else:
                    learnt += self._said(part, media, weight=turn.weight, learnt=True)
            before = Piece(self.answer, weight=turn.weight, learnt=True)
            end = Piece(self.end, weight=turn.weight, control=True, learnt=True)
            return [header, before, *learnt, end]
        if turn.role == "document":
            return self._document(turn, media)
        if turn.role != "user":
            known = "system, user, assistant, document"
            raise DataError("unknown-role", f"the template {self.name!r} has no role {turn.role!r}; it has {known}")
        frame, words = self.user, Words(text=self.words(turn.parts, media) if self.questions else "")
        outside = [p for p in turn.parts if isinstance(p, Media)] if self.place == "outside" else []
        return [
            *self._user_parts(outside, media, words, flip),
            Piece(frame.before, control=True),
            *self._user_parts([p for p in turn.parts if p not in outside], media, words, flip),
            Piece(frame.after, control=True),
        ]

    def _document(self, turn: Turn, media: Sequence[Media]) -> list[Piece]:
        """Words and media as they stand: the words, what ends a chunk and the end marker are learnt."""
        pieces: list[Piece] = []
        learnt = self.preface
        for part in self._grouped(turn.parts):
            if isinstance(part, Media):
                learnt = True
                if pieces and pieces[-1].learnt:
                    pieces.append(Piece(self.chunk, weight=turn.weight, control=True, learnt=True))
                frame = self.media.get(part.kind, Frame())
                pieces += [Piece(frame.before, control=True), Piece(medium=part), Piece(frame.after, control=True)]
            else:
                pieces += self._said(part, media, weight=turn.weight if learnt else 0.0, learnt=learnt)
        return [*pieces, Piece(self.end, weight=turn.weight if learnt else 0.0, control=True, learnt=learnt)]

    def _user_parts(self, parts: Sequence[Part], media: Sequence[Media], words: Words, flip: bool) -> list[Piece]:
        kept = [p for p in self._grouped(parts) if self.questions or isinstance(p, Media)]
        if self.place != "written":
            shown, text = [p for p in kept if isinstance(p, Media)], [p for p in kept if not isinstance(p, Media)]
            kept = text + shown if self.place == "random" and flip else shown + text
        pieces: list[Piece] = []
        for i, part in enumerate(kept):
            # The joint stands once between a medium and each neighbour; plain pre-training has no neighbours.
            if i and (isinstance(part, Media) or isinstance(kept[i - 1], Media)):
                pieces.append(Piece(self.joint, control=True))
            if isinstance(part, Media):
                frame = self.media.get(part.kind, Frame())
                medium = Piece(medium=part, words=words)
                pieces += [Piece(frame.before, control=True), medium, Piece(frame.after, control=True)]
            else:
                said = self._said(part, media, weight=self.user_weight)
                pieces += [replace(piece, words=words) for piece in said]
                if self.pointer and not isinstance(part, Text):
                    pieces.append(Piece(self.pointer, control=True, spot=(part[0], media[part[0].of])))
        return pieces

    def _grouped(self, parts: Sequence[Part]) -> list[_Said]:
        """The parts with regions side by side as one, until the next that has a phrase of its own."""
        made: list[_Said] = []
        for part in parts:
            if not isinstance(part, Region):
                made.append(part)
            elif made and isinstance(made[-1], list) and not part.phrase and not self.pointer:
                made[-1].append(part)
            else:
                made.append([part])
        return made

    def _said(
        self, part: Text | list[Region], media: Sequence[Media], *, weight: float = 0.0, learnt: bool = False
    ) -> list[Piece]:
        """Words, or places with the words that name them. Only what the format writes may hold special tokens."""
        if isinstance(part, Text):
            return [Piece(part.text, weight=weight * part.weight, learnt=learnt, mark=part.mark)]
        form, name = self.regions, part[0].phrase
        places = form.format(part, size=self._size(part[0], media))
        made = [Piece(form.phrase.before, control=True), Piece(name), Piece(form.phrase.after, control=True)]
        made = [*(made if name else []), Piece(places, control=True)]
        return [replace(piece, weight=weight, learnt=learnt) for piece in made]

    def _size(self, region: Region, media: Sequence[Media]) -> tuple[int, int]:
        """Height and width of the region's picture; its header is read only where the format depends on it."""
        if region.of >= len(media):
            raise DataError("bad-region", f"a region of medium {region.of + 1}, and the sample has {len(media)}")
        return (1, 1) if self.regions.frame == "picture" else image_size(media[region.of].ref)

    def _node(self, node: Node, media: Sequence[Media], flip: bool, *, root: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if not root and any(turn.role == "system" for turn in node.turns):
            raise DataError("misplaced-system", "a system message stands in a branch; it belongs before all turns")
        if root:
            own = [_as_text(p).text for t in node.turns if t.role == "system" for p in t.parts]
            system = "\n".join(own) if own else self.system
            if system:
                frame = self.system_frame
                pieces = [Piece(frame.before, control=True), Piece(system), Piece(frame.after, control=True)]
        first, seen = root, len(media) - len(_with((), node))
        for turn in node.turns:
            seen += sum(isinstance(part, Media) for part in turn.parts)
            if turn.role == "user" and seen and self.identifiers:
                turn = replace(turn, parts=identified(turn.parts, self.identifiers))
            if turn.role == "user" and not first:
                pieces.append(Piece(self.between, control=True))
            elif turn.role == "user" and not any(isinstance(part, Media) for part in turn.parts):
                pieces.append(Piece(self.blank, control=True))
            pieces += self._turn(turn, media, flip)
            first = first and turn.role == "system"
        return pieces

    # ---- tokens -------------------------------------------------------------------------------------------------
    def tokens(self, sample: Sample, tokenizer: Tokenizer, measure: Measure, *, open: bool = False) -> Tokens:
        """The sample as tokens. With `open`, every leaf ends in the header of the answer to come.

        Raises:
            DataError: nothing to learn (unless `open`), or a sample whose branches begin where nothing stands before.
        """
        # Not the file's name: the same rows elsewhere on the disk must train the same.
        flip = bool(hashlib.sha256(f"{sample.origin.row}/{sample.origin.id}".encode()).digest()[0] & 1)
        trees: list[Tokens] = []
        for root in (sample.root, *sample.others):
            rows = Rows(tokenizer, measure, shared=self.places == "inner")
            if self.bos and tokenizer.bos:
                rows.put([tokenizer.id(tokenizer.bos)], [0.0])
            self._visit(root, [], rows, flip=flip, open=open, root=True)
            trees.append(rows.tokens(sample))
        made = trees[0] if len(trees) == 1 else beside(trees)
        if not open and made.count == 0:
            raise DataError("nothing-to-learn", "no token of this sample is learnt; it needs an answer with words")
        return made

    def _visit(
        self,
        node: Node,
        above: Sequence[Media],
        rows: "Rows",
        *,
        flip: bool,
        open: bool,
        root: bool = False,
        tail: Tail = START,
    ) -> None:
        # Media are counted along the path: a branch is spelt as if it had no siblings.
        media = _with(above, node)
        pieces = self._pieces(node, media, flip, open=open, root=root)
        # Of its children only what they begin with: it may be one word with what this node ends with.
        heads = [self._pieces(child, _with(media, child), flip, open=open) for child in node.children]
        tail = rows.write([*tail.run, *pieces], skip=tail.written, branches=heads)
        if node.answer is not None:
            rows.compare(node.answer)
        for child in node.children:
            with rows.branch():
                self._visit(child, media, rows, flip=flip, open=open, tail=tail)

    def _pieces(self, node: Node, media: Sequence[Media], flip: bool, *, open: bool, root: bool = False) -> list[Piece]:
        """A node's own; with `open`, a leaf ends in the header of the answer to come."""
        header = [Piece(self.assistant, control=True)] if open and not node.children else []
        return self._node(node, media, flip, root=root) + header

    def stop_id(self, tokenizer: Tokenizer) -> int | None:
        """The token that ends an answer, if the end marker is one token; else generation compares text."""
        if self.end in tokenizer.specials:
            return tokenizer.specials[self.end]
        ids, _ = tokenizer.encode(self.end)
        return ids[0] if len(ids) == 1 else None


def _with(above: Sequence[Media], node: Node) -> list[Media]:
    """The media of a path that ends in this node."""
    return [*above, *(part for turn in node.turns for part in turn.parts if isinstance(part, Media))]


def _as_text(part: Part) -> Text:
    if not isinstance(part, Text):
        raise DataError("unsupported-part", f"a system message is text; it holds a {type(part).__name__}")
    return part
