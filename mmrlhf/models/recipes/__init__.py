"""Recipes of tiny random models, one file per lineage of model families."""
