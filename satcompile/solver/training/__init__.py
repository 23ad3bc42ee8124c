"""Plans of a training step: what crosses from forward to backward, and what is computed again."""
