"""Which stage writes which kind of summary."""

from __future__ import annotations

from collections.abc import Mapping

from mmrlhf.summaries.curations import CurateSummary, QueryFeaturesSummary
from mmrlhf.summaries.datasets import ExpandSummary, PackSummary, PublishSummary
from mmrlhf.summaries.evaluations import BestOfNSummary, EvaluateSummary, GenerateSummary, ReportSummary
from mmrlhf.summaries.people import AnnotatedSummary, AnnotateSummary
from mmrlhf.summaries.responses import RespondSummary
from mmrlhf.summaries.scores import (
    AnnotationsSummary,
    CalibrateSummary,
    MeanRewardsSummary,
    ReferenceSummary,
    RewardBenchSummary,
    ScoreFileSummary,
    ScoreSummary,
)
from mmrlhf.summaries.suites import SuiteAnswers, SuiteComparison, SuiteDocuments, SuiteScores
from mmrlhf.summaries.summary import Summary
from mmrlhf.summaries.trainings import TrainingSummary
from mmrlhf.summaries.triages import AuditSummary, LabelledSummary, TriageSummary

KINDS: Mapping[str, type[Summary]] = {
    "pack": PackSummary,
    "query_features": QueryFeaturesSummary,
    "curate": CurateSummary,
    "annotate": AnnotateSummary,
    "annotated": AnnotatedSummary,
    "audit": AuditSummary,
    "triage": TriageSummary,
    "labelled": LabelledSummary,
    "respond": RespondSummary,
    "expand": ExpandSummary,
    "sft": TrainingSummary,
    "reward": TrainingSummary,
    "mmdpo": TrainingSummary,
    "score": ScoreSummary,
    "annotations": AnnotationsSummary,
    "mean_rewards": MeanRewardsSummary,
    "reference": ReferenceSummary,
    "rewardbench": RewardBenchSummary,
    "score_file": ScoreFileSummary,
    "calibrate": CalibrateSummary,
    "generate": GenerateSummary,
    "best_of_n": BestOfNSummary,
    "evaluate": EvaluateSummary,
    "report": ReportSummary,
    "publish": PublishSummary,
    "compare": SuiteComparison,
    "report_benchmarks": SuiteComparison,
    "suite_documents": SuiteDocuments,
    "suite_answers": SuiteAnswers,
    "suite_scores": SuiteScores,
}


def kind_of(target: str) -> type[Summary] | None:
    """The summary of the stage function with this dotted name; None for a stage without one, or of someone else's."""
    package, _, function = target.rpartition(".")
    room, _, stage = package.rpartition(".")
    return KINDS.get(stage) if (room, function) == ("mmrlhf.stages", "run") else None
