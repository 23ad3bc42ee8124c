"""The command line, the demo, and plans made without running anything."""
