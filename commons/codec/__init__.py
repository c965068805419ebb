"""How a tensor becomes bytes on the wire, and back: one call each way, the same on every machine."""

from commons.codec.feedback import encode_with_feedback
from commons.codec.frames import (
    FRAME,
    add_frame,
    check_frame,
    decode,
    decode_frame,
    encode,
    encode_frame,
    encoded_bytes,
    frame_bytes,
    frame_count,
)
from commons.codec.rules import CELL, LARGEST, CodecError

__all__ = [
    "CELL",
    "FRAME",
    "LARGEST",
    "CodecError",
    "add_frame",
    "check_frame",
    "decode",
    "decode_frame",
    "encode",
    "encode_frame",
    "encode_with_feedback",
    "encoded_bytes",
    "frame_bytes",
    "frame_count",
]
