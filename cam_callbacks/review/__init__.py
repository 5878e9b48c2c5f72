"""The CAM tab in TensorBoard. Imports neither torch nor Lightning, so that TensorBoard starts as fast as without it."""
