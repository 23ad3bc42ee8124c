"""The passes, one per file. Each is a small frozen dataclass; ``satcompile.pipeline`` runs them."""
