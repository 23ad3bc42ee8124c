"""The passes, one per file: frozen dataclasses that ``satcompile.compile.pipeline`` runs."""
