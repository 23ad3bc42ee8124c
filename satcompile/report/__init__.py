"""What was decided, as data, text and pages. Nothing below imports it."""
