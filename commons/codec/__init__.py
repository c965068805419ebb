"""How a tensor becomes bytes on the wire, and back: one call each way, the same on every machine."""

from commons.codec.dense import BLOCK, LARGEST, CodecError, decode, encode, encoded_bytes

__all__ = ["BLOCK", "LARGEST", "CodecError", "decode", "encode", "encoded_bytes"]
