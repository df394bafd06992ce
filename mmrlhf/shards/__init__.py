"""Preference groups in tar shards: written, indexed, verified, read; and tables beside them."""
