"""The parts of `hansa bench learning`: texts, plan, one variant end to end, scores, curves."""
