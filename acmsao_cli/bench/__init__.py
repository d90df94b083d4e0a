"""Optimizers on small tasks: compared at equal budget, taken apart, and told of with spread."""
