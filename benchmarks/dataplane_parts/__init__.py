"""The parts of `benchmarks.dataplane`: each measures one promise and answers with plain numbers."""
