"""Sparse adaptive training: which tiles of each weight are trained, and when that changes."""
