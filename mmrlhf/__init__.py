"""Multimodal preference alignment: ranked data, a critique-based reward model, and MM-DPO (arXiv 2502.10391)."""
