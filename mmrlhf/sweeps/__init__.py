"""Many jobs of one command: their table, their page."""
