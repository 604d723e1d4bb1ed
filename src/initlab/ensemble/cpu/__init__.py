"""The optional fast path of an ensemble on a CPU."""
