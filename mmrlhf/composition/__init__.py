"""From the command line and the Hydra config to plain settings and checked objects."""
