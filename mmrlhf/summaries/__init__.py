"""What stages found out, which reports read: one type for each kind of `metrics.json`, and the files of curves."""
