"""The model as everybody can use it, and the proof of where it comes from."""

from orchestrator.release.check import verify
from orchestrator.release.publish import Made, make

__all__ = ["Made", "make", "verify"]
