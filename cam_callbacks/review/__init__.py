"""The CAM tab in TensorBoard, and the report: what the training writes for them, and what reads it, without torch."""
