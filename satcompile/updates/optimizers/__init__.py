"""Optimizers whose update is compiled: rules, state, and when they are applied."""
