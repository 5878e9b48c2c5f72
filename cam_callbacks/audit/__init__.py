"""Numbers from heatmaps. Knows torch, not Lightning."""
