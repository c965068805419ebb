"""What all partners must agree on, byte for byte.

Importing this package loads no torch, no Ray and no gRPC: the trust path stays small enough to read.
"""
