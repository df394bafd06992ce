"""Models behind an HTTP endpoint: asked at a bounded rate, answered or refused one by one, never trusted."""
