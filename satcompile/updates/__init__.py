"""How weights change: optimizers, which tiles of a weight are trained, and the kernels for both."""
