"""Optimizers whose update is compiled: rules, state, and when updates are applied."""
