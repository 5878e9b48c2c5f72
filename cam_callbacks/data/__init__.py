"""Images, labels, masks: what a model is given. Knows torch, not Lightning."""
