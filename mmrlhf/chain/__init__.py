"""Stages as a chain: order, fingerprints, store, processes. Knows no stage, no model and no report."""
