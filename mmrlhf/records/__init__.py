"""Other people's records, read into preference groups: one file for each layout."""
