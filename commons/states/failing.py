"""Which failures of a remote place may pass, and what the operator does about the others.

Knows kinds of errors by name where their library may not be installed.
"""

from __future__ import annotations

import errno

from commons.errors import StoreError

_LASTING = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    ValueError,
    TypeError,
    AssertionError,
)
_LASTING_NUMBERS = frozenset(
    {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}
    | {getattr(errno, "EREMCHG", errno.EINVAL)}
)
_CREDENTIALS = ("Credential", "ProfileNotFound", "TokenRetrieval", "SSOToken", "UnauthorizedSSO")


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed in a while: the network, an overloaded server."""
    if not isinstance(error, Exception) or isinstance(error, _LASTING) or _of_credentials(error):
        return False
    return not (isinstance(error, OSError) and error.errno in _LASTING_NUMBERS)


def explained(where: str, error: Exception) -> StoreError:
    """The failure in words, with what the operator does about it."""
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, PermissionError) or _of_credentials(error):
        return StoreError(
            f"{where} refuses the coordinator ({why}); its operator gives it credentials that may list, read, write "
            "and delete there (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile); saved states are intact"
        )
    if may_pass(error):
        return StoreError(
            f"cannot reach {where} ({why}); it is tried again, and the operator checks network and endpoint "
            "(AWS_ENDPOINT_URL) if that goes on; saved states are intact"
        )
    return StoreError(
        f"cannot use {where} ({why}); the operator corrects the URL, endpoint or region; saved states are intact"
    )


def missing(where: str) -> StoreError:
    """There is no such bucket or folder."""
    return StoreError(
        f"{where} does not exist; the operator creates the bucket, or corrects the URL of the states"
    )


def _of_credentials(error: BaseException) -> bool:
    return any(part in type(error).__name__ for part in _CREDENTIALS)
