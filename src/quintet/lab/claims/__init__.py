"""The surveys' claims about alignment as controlled experiments: `quintet compare --claims P1,P2 --from RUN`."""

from quintet.lab.claims.run import Study, study
from quintet.lab.claims.table import CLAIMS

__all__ = ["CLAIMS", "Study", "study"]
