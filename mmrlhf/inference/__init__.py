"""Models that are asked, not trained: policies, the reward model, passes over queries."""
