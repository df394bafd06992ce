"""Short reasons of annotators, expanded to full critiques by a larger model."""
