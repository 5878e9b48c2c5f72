"""Images, labels and masks: what a model is fed. Knows torch, not Lightning."""
