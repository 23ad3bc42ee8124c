"""From a planned graph to code: the passes, the hand-off to Inductor, the code's allocations."""
