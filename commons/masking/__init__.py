"""Secure aggregation: the coordinator learns the sum of the sites' updates, and no single one (docs/decisions/0005).

Start at `site.SiteMasking` and `round.RoundMasking`: the five steps of one attempt, seen from both sides.
"""

from commons.masking.attempt import Attempt, speaker
from commons.masking.ring import FixedPoint, add_words, to_bytes
from commons.masking.roster import SITES_MAX, Deal, Strength, strength
from commons.masking.round import RoundMasking, Step, Waiting
from commons.masking.site import Bound, SiteMasking
from commons.masking.streams import Keystream, Masker, Stream, Unmasker
from commons.masking.survivors import Reveal

__all__ = [
    "SITES_MAX",
    "Attempt",
    "Bound",
    "Deal",
    "FixedPoint",
    "Keystream",
    "Masker",
    "Reveal",
    "RoundMasking",
    "SiteMasking",
    "Step",
    "Stream",
    "Strength",
    "Unmasker",
    "Waiting",
    "add_words",
    "speaker",
    "strength",
    "to_bytes",
]
