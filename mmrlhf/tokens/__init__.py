"""A preference group as tokens: templates, media, encoding, packed rows."""
