"""CAMMonitor, and all that it needs of a training. The only package that knows Lightning."""
