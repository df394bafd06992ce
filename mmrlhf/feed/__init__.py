"""Which queries are trained on, in which order, in which steps; and their loading."""
