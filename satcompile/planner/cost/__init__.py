"""Costs of operations on a device: microseconds by a roofline, bytes of memory."""
