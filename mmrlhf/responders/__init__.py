"""Who answers queries: a checkpoint here, a model behind an endpoint, a batch worked off elsewhere."""
