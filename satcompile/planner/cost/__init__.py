"""What operations cost on a device: microseconds by a roofline, bytes of memory."""
