"""Event files to one page that can be handed over. Imports neither torch nor Lightning."""
