"""`quintet doctor`: proves on samples of your data that nothing goes wrong in silence.

    rows ─► data/check ─► template ─► text contracts (answers, length, chat)
                             └──────► a small model with random weights ─► model contracts
                                      (columns, shift, packing, media, gradients)

Every check derives what it expects from the sample and the attention rule, not from the code that it examines.
`docs/footguns.md` says which known fault each contract is for.
"""

from quintet.lab.doctor.diagnosis import Diagnosis
from quintet.lab.doctor.entry import diagnose
from quintet.lab.doctor.findings import CONTRACTS, Finding, Progress, Rendered, Segment, SourceCount, Verdict

__all__ = [
    "CONTRACTS",
    "Diagnosis",
    "Finding",
    "Progress",
    "Rendered",
    "Segment",
    "SourceCount",
    "Verdict",
    "diagnose",
]
