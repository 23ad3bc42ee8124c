"""Planning without running, for any device: what a step needs and what the backend would decide.

``trace`` captures the step on fake tensors, ``estimate`` plans it as the backend would, ``batches``
finds the largest batch that fits, ``catalogue`` builds well-known models (``published``), and
``command`` and ``show`` are the command line.
"""
