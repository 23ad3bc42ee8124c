"""From a joint graph to a plan: its numbers for the solver, costs of its operations, the answer."""
