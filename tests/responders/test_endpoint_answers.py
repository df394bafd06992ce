"""An endpoint as whoever answers: money that requests under way have set aside is not spent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stand_ins.chat_endpoint import chat_server

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.responders.asking import AnswerSettings, Asked
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.responders.spending import Purse
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import PreferenceGroup

QUERIES = 12


@pytest.mark.parametrize("shared", [False, True])
def test_a_limit_that_is_enough_stops_nobody(tmp_path: Path, runtime: Runtime, shared: bool) -> None:
    """An answer may cost 1 and costs 0.002: of twelve three at a time, whichever purse has the limit of 3."""
    write_shards([PreferenceGroup(f"q{n}", f"say {n}", ()) for n in range(QUERIES)], tmp_path / "shards")
    index, runtime = Index.load(tmp_path / "shards"), replace(runtime, answers=tmp_path / "answers")
    how, rows, above = AnswerSettings(max_new_tokens=1000), np.arange(QUERIES), Purse(3.0 if shared else None)
    with chat_server() as server:
        asked = Asked(index, rows, how, tmp_path / "work", runtime, Quarantine(QUERIES))
        answerer = EndpointAnswerer(
            server.url, "m", price_in=0.0, price_out=1000.0, max_cost=None if shared else 3.0, tokens_per_answer=10
        )
        found = answerer.answers(asked, above)
        assert {key: answer.text for key, (answer,) in found.items()} == {f"q{n}": f"say {n}" for n in range(QUERIES)}
        assert above.spent == pytest.approx(0.002 * QUERIES) and len(server.seen) == QUERIES
        server.says = lambda request: "word " * 900
        again = replace(asked, how=replace(how, seed=1), memo={})
        with pytest.raises(ConfigError, match=r"limit on the cost has stopped[\s\S]*2\.7[\s\S]*3 of 12 answers"):
            answerer.answers(again, Purse(3.0) if shared else Purse())
