"""Benchmarks of policies: documents, answers, scores, judges, and two policies compared."""
