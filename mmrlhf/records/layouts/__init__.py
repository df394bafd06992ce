"""Layouts of published preference data: a function each from a row as it was published to a row of the full layout."""
