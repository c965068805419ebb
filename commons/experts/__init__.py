"""Which slice of which tensor is trunk, which is expert e, and who owns e. Imports no torch."""
