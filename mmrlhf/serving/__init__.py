"""The reward model behind an HTTP address: who may ask what, queries batched as they come, answers in several forms."""
