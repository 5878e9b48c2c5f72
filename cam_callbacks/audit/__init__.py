"""Measure whether a classifier relies on the background, and judge what was measured. Independent of Lightning."""
