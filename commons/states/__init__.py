"""Model states, addressed by content and written and read block by block.

Owns blobs and the manifests that make a state of them. Knows nothing of rounds or of what a slice means. A state is a
manifest (`commons.states.manifest`), which is itself a blob whose digest IS the state's digest; every slice is one blob
of raw little-endian fp32. Slices that two states share are stored, and fetched, once.
"""

from commons.states.manifest import (
    FP32,
    MANIFEST_BYTES_MAX,
    Blob,
    Step,
    Tensor,
    manifest_bytes,
    read_manifest,
    state_digest,
)
from commons.states.reading import BlobReader
from commons.states.store import StateStore
from commons.states.writing import BlobWriter, SliceWriter, StateWriter

__all__ = [
    "FP32",
    "MANIFEST_BYTES_MAX",
    "Blob",
    "BlobReader",
    "BlobWriter",
    "SliceWriter",
    "StateStore",
    "StateWriter",
    "Step",
    "Tensor",
    "manifest_bytes",
    "read_manifest",
    "state_digest",
]
