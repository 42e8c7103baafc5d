"""Where samples come from: files in the field's own formats as random-access tables."""

from quintet.data.sources.annotations import CocoCaptions, Vqa, VqaTruth
from quintet.data.sources.base import Reading, Source
from quintet.data.sources.files import Conversations
from quintet.data.sources.mix import Mix
from quintet.data.sources.open import FORMATS, detect, open_source
from quintet.data.sources.pages import Documents, Pages
from quintet.data.sources.shards import Shards
from quintet.data.sources.table import Parquet

__all__ = [
    "FORMATS",
    "CocoCaptions",
    "Conversations",
    "Documents",
    "Mix",
    "Pages",
    "Parquet",
    "Reading",
    "Shards",
    "Source",
    "Vqa",
    "VqaTruth",
    "detect",
    "open_source",
]
