"""Benchmarks of reward models, one file each: `convert` turns a published row into a ranked record or a pair."""
