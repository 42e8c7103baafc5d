"""Scenes, the built-in world: seeded pictures of coloured shapes, digits and words, whose whole truth is known.

    World ──sample_scene──► Scene ──render──► picture
                              └──► captions, questions, boxes, conversations, things by name, dense labels

`make_scenes` writes them in the field's formats; `stream` gives them without files.
"""

from quintet.data.scenes.conversations import conversation, describe, pointing, pretrain
from quintet.data.scenes.language import (
    BRIEF,
    DETAILED,
    KINDS,
    Occurrences,
    Question,
    ask,
    caption,
    grounding,
    mentions,
    objects_of,
    pope,
    pope_candidates,
    questions,
    refer,
    referring,
)
from quintet.data.scenes.maps import dense_labels, things
from quintet.data.scenes.render import render
from quintet.data.scenes.vocabulary import COLOURS, OBJECTS, PLACES, SHAPES, SIZES, SPLITS, WORDS
from quintet.data.scenes.world import Digit, Object, Scene, Word, World, sample_scene, stream
from quintet.data.scenes.write import LAYOUT, Truth, make_scenes, read_truth, split_sizes

__all__ = [
    "BRIEF",
    "COLOURS",
    "DETAILED",
    "KINDS",
    "LAYOUT",
    "OBJECTS",
    "PLACES",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "WORDS",
    "Digit",
    "Object",
    "Occurrences",
    "Question",
    "Scene",
    "Truth",
    "Word",
    "World",
    "ask",
    "caption",
    "conversation",
    "dense_labels",
    "describe",
    "grounding",
    "make_scenes",
    "mentions",
    "objects_of",
    "pointing",
    "pope",
    "pope_candidates",
    "pretrain",
    "questions",
    "read_truth",
    "refer",
    "referring",
    "render",
    "sample_scene",
    "split_sizes",
    "stream",
    "things",
]
