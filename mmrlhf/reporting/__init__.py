"""Tables, pictures and pages of what came out."""
