"""People's judgements of answers: asked on a page, in Label Studio or of simulated annotators, and made labels."""
