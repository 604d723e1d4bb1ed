"""One pass through a module, recorded: calls of layers, activations, sums of residual streams."""
