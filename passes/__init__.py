"""The passes, one per file. Each is a small frozen dataclass; ``satcompile.compile.pipeline`` runs them."""
