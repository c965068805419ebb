"""The parts of `benchmarks.ledger`: each measures one promise and answers with plain numbers."""
