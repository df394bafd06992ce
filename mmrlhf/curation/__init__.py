"""Sets of queries: features, near duplicates, clusters, and a diverse sample of them."""
