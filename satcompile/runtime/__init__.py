"""What happens at each call: residency, the steps that calls make up, the choice of a plan."""
