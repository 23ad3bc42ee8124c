"""The work at each call: residency, the steps that calls form, and the choice of a plan."""
