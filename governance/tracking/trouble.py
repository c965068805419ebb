"""What went wrong with MLflow, in a sentence that says who does what: the same trouble always in the same words."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_STATUS = re.compile(r"error code (\d{3})|too many (\d{3}) error|\b(\d{3}) (?:Client|Server) Error")
_UNREACHABLE = ("Connection refused", "Max retries exceeded", "Failed to establish", "Connection aborted", "timed out",
                "Name or service not known", "Connection reset", "could not connect", "connection failed")  # fmt: skip


def explain(error: Exception, tracking_uri: str) -> str:
    """One line, without what differs between two attempts and without a password."""
    text, where = str(error), shown(tracking_uri)
    found = _STATUS.search(text)
    status = int(next(filter(None, found.groups()))) if found else 0
    if status == 401:
        return (
            f"MLflow at {where} does not let the mirror in (401): start the coordinator with the right "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in its environment"
        )
    if status == 403:
        return f"MLflow at {where} lets the mirror read and not write (403): its administrator gives the user the right"
    if status >= 500:
        return f"MLflow at {where} answers with an error of its own ({status}); its log says more"
    if any(sign in text for sign in _UNREACHABLE):
        return f"MLflow at {where} cannot be reached: start it, or see to the network between"
    first = text.partition("\n")[0] or type(error).__name__
    return f"MLflow at {where} cannot be written to: {first[:300]}"


def shown(tracking_uri: str) -> str:
    """The address without user and password."""
    parts = urlsplit(tracking_uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
