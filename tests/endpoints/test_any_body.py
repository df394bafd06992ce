"""Whatever an endpoint sends: an answer that can be kept, another try, or a user's error."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from mmrlhf.endpoints.client import ChatEndpoint, _Busy
from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import HubError

parts = st.sampled_from(["type", "text", "x"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner, max_size=3)
    ),
)
message = st.fixed_dictionaries({"content": anything}) | anything
choice = st.fixed_dictionaries({"message": message}, optional={"finish_reason": anything}) | anything
body = st.fixed_dictionaries({"choices": st.lists(choice, max_size=2) | anything}) | anything


@given(st.binary(max_size=40) | body.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"choices": [{"message": {"content": "a"}, "finish_reason": []}]}')
@example(b'{"choices": [{"message": {"content": "\\ud800"}}]}')
def test_any_body(sent: bytes) -> None:
    endpoint = ChatEndpoint("http://localhost/v1", "m")
    try:
        answer = endpoint._answer(sent)
    except (_Busy, HubError):
        return
    assert isinstance(answer, Answer) and isinstance(answer.problem, str)
    answer.text.encode()
