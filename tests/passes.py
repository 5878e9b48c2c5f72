"""How many images a call forwards to get to know a model, beside those that it explains."""

NEIGHBORS = 3
"""Whether images of a batch influence each other: one alone, and beside another."""
