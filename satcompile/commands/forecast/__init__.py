"""Planning without running: what a training step needs, and what would be decided, on any device.

``trace`` captures the step on fake tensors, ``estimate`` plans it as the backend would, ``batches``
finds the largest batch that fits, ``catalogue`` builds well-known models (``published``), ``command``
and ``show`` are the command line.
"""
