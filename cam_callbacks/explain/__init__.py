"""How a heatmap is computed. Knows torch, not Lightning."""
