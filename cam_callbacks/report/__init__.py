"""Event files to one page that can be handed over. Knows `records` and TensorBoard's reader, neither torch nor Lightning."""
