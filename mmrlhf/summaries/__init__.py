"""What stages found out: one type for each kind of `metrics.json`, which stages build and reports read."""
