"""Computes parts of a joint graph in chunks of rows, so that no value has all rows at once."""
