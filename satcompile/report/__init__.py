"""The decisions as data, text and pages. Nothing below imports this package."""
