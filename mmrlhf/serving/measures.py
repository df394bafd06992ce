"""What the server counts, in the form that Prometheus collects."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """Counters of one server; each server has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry, "namespace": "mmrlhf"}
        ProcessCollector(registry=self.registry)
        self.requests = Counter("requests", "Requests by path and status", ("path", "status"), **own)
        self.seconds = Histogram("request_seconds", "From headers to answer", ("path",), buckets=_SECONDS, **own)
        self.refusals = Counter("refusals", "Requests without an answer, by reason", ("code",), **own)
        self.queries = Counter("queries", "Queries scored", **own)
        self.shared = Counter("queries_shared", "Queries whose prefix was read for another one", **own)
        self.responses = Counter("responses", "Responses scored", **own)
        self.critique_tokens = Counter("critique_tokens", "Tokens of critiques written", **own)
        self.waiting = Gauge("queries_waiting", "Queries that wait to be scored", **own)
        self.batch = Histogram("batch_queries", "Queries of a batch", buckets=_NUMBERS, **own)
        self.batch_seconds = Histogram("batch_seconds", "Time of a batch in the model", buckets=_SECONDS, **own)

    def page(self) -> bytes:
        """Everything as Prometheus reads it."""
        return generate_latest(self.registry)
