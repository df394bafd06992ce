"""Generative judges: a model that is asked for verdicts in words, behind an endpoint or on this machine."""
