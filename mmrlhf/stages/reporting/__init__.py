"""What a run found out, as tables, pictures and pages: numbers with intervals first, then sections, then the page."""
