"""From a planned graph to code: the passes in order, the hand-off to Inductor, what its code allocates."""
