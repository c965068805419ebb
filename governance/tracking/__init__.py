"""MLflow as a mirror of the journal: never the truth, never waited for, can be deleted and made again."""

from governance.tracking.mirror import Mirror

__all__ = ["Mirror"]
