"""Base state and admitted updates in, new state out: the same inputs give the same bytes."""

from orchestrator.combine.contributions import Contribution
from orchestrator.combine.fold import Combined, combine
from orchestrator.combine.unmasking import Opening, Unmoved

__all__ = ["Combined", "Contribution", "Opening", "Unmoved", "combine"]
