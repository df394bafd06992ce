"""The server's paths: rewards in our own form and in those of trainers, its state, its counts and its description."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine
from importlib import resources
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from mmrlhf.serving.desk import Desk
from mmrlhf.serving.gate import answer_with
from mmrlhf.serving.measures import Measures
from mmrlhf.serving.refusals import Refusal
from mmrlhf.serving.rendered import as_messages, split_rendered
from mmrlhf.serving.wire import (
    ErrorAnswer,
    OpenRLHFAnswer,
    OpenRLHFRequest,
    Reward,
    RewardAnswer,
    RewardRequest,
    ScoreAnswer,
    ScoreRequest,
    field_of,
)

T = TypeVar("T")
REWARDS, OPENRLHF, LLAMA_FACTORY = "/v1/rewards", "/get_reward", "/v1/score/evaluation"
ASKING = frozenset({REWARDS, OPENRLHF, LLAMA_FACTORY})
TELLING = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json"})
_BEARER = HTTPBearer(auto_error=False)
_SCRIPT, _STYLE = "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"
_STATUSES = {
    400: "not JSON",
    401: "no token, or a wrong one",
    403: "an address that is not allowed",
    408: "the body came too slowly",
    413: "more than a limit allows",
    415: "not declared as JSON",
    422: "something that cannot be used; `error.param` names the field",
    500: "the server failed at this request",
    503: "too many requests, or the model is being loaded or stopped; `Retry-After` says when to come again",
    504: "not done in time",
}


def create_app(desk: Desk, measures: Measures, *, most_queries: int, lifespan: Any = None) -> FastAPI:
    """The routes of one server; `lifespan` is FastAPI's."""
    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorAnswer, "description": said} for code, said in _STATUSES.items()
    }
    app = FastAPI(
        title="mmrlhf reward model", version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        lifespan=lifespan, description="Rewards, critiques and scores of responses to multimodal conversations.",
    )  # fmt: skip
    _add_asking(app, desk, most_queries, errors)
    _add_telling(app, desk, measures)
    _add_description(app)
    _add_errors(app, measures)
    return app


def _add_asking(app: FastAPI, desk: Desk, most_queries: int, errors: dict[int | str, dict[str, Any]]) -> None:
    async def timely(request: Request, work: Coroutine[Any, Any, T]) -> T:
        found = await desk.in_time(work, _gone(request))
        if found is None:
            raise Refusal(499, "gone", "the client left")
        return found

    def check_number(number: int, field: str) -> None:
        if number > most_queries:
            problem = f"{number} queries; the limit is {most_queries} (limits.max_queries)"
            raise Refusal(413, "too_many_queries", problem, field=field)

    # the gate has looked at the token; this lets the description say so, and its page send one
    asking: dict[str, Any] = {"responses": errors, "tags": ["rewards"], "dependencies": [Depends(_BEARER)]}

    @app.post(REWARDS, **asking, summary="Rewards, critiques and scores of K responses")
    async def rewards(asked: RewardRequest, request: Request) -> RewardAnswer:
        verdicts = await timely(request, desk.judge(asked.messages, asked.responses))
        data = [
            Reward(
                index=index,
                reward=verdict.reward,
                critique=verdict.critique,
                scores=dict(verdict.dimensions),
                critique_cut=verdict.critique_cut,
                response_cut=verdict.response_cut,
            )
            for index, verdict in enumerate(verdicts)
        ]
        return RewardAnswer(model=desk.name, data=data)

    @app.post(OPENRLHF, **asking, summary="OpenRLHF's remote reward model")
    async def get_reward(asked: OpenRLHFRequest, request: Request) -> OpenRLHFAnswer:
        check_number(len(asked.query), "query")
        queries = []
        for number, text in enumerate(asked.query):
            prompt = _of(asked.prompts, number, "prompts", len(asked.query))
            images = _of(asked.images, number, "images", len(asked.query))
            turns, response = split_rendered(text, prompt, f"query[{number}]")
            queries.append((as_messages(turns, images, f"query[{number}]"), response))
        verdicts = await timely(request, desk.judge_all(queries, _place_in_query))
        found = [verdict.reward for verdict in verdicts]
        names = list(verdicts[0].dimensions)
        logs = {name: [verdict.dimensions[name] for verdict in verdicts] for name in names}
        return OpenRLHFAnswer(rewards=found, scores=found, extra_logs=logs)

    @app.post(LLAMA_FACTORY, **asking, summary="LLaMA-Factory's reward server (reward_model_type: api)")
    async def score_evaluation(asked: ScoreRequest, request: Request) -> ScoreAnswer:
        check_number(len(asked.messages), "messages")
        queries = []
        for number, text in enumerate(asked.messages):
            turns, response = split_rendered(text, None, f"messages[{number}]")
            queries.append((as_messages(turns, None, f"messages[{number}]"), response))
        verdicts = await timely(request, desk.judge_all(queries, lambda number, _: f"messages[{number}]"))
        scores = [verdict.reward for verdict in verdicts]
        return ScoreAnswer(id=f"scoreval-{uuid.uuid4().hex}", model=asked.model or desk.name, scores=scores)


def _add_telling(app: FastAPI, desk: Desk, measures: Measures) -> None:
    @app.get("/health", tags=["server"], summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/ready",
        tags=["server"],
        summary="Whether queries are taken",
        responses={503: {"description": "loading or stopping"}},
    )
    async def ready() -> JSONResponse:
        return JSONResponse({"status": desk.state, "model": desk.name}, 200 if desk.state == "ready" else 503)

    @app.get("/metrics", tags=["server"], summary="Counts for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_description(app: FastAPI) -> None:
    """The page of the description, with its script and style from this server and not from elsewhere."""
    static = resources.files("fastapi_offline") / "static"
    script, style = ((static / path.rpartition("/")[2]).read_bytes() for path in (_SCRIPT, _STYLE))

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json", title=app.title, swagger_js_url=_SCRIPT, swagger_css_url=_STYLE,
            swagger_favicon_url="data:,",
        )  # fmt: skip

    @app.get(_SCRIPT, include_in_schema=False)
    async def swagger_script() -> Response:
        return Response(script, media_type="text/javascript")

    @app.get(_STYLE, include_in_schema=False)
    async def swagger_style() -> Response:
        return Response(style, media_type="text/css")


def _add_errors(app: FastAPI, measures: Measures) -> None:
    """Every refusal has one form, also those of FastAPI's own."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return answer_with(refusal, measures)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer_with(_refusal_of(error), measures)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return answer_with(Refusal(error.status_code, "http_error", str(error.detail), headers=error.headers), measures)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer_with(Refusal(500, "failed", "the server failed at this request; its log says why"), measures)


def _refusal_of(error: RequestValidationError) -> Refusal:
    first = error.errors()[0]
    location = [item for item in first["loc"] if item != "body"]
    if first["type"] == "json_invalid":
        return Refusal(400, "not_json", f"not JSON ({first['ctx']['error']})", field="body")
    if first["type"] == "extra_forbidden":
        return Refusal(422, "unknown_field", "nothing reads this field", field=field_of(location))
    return Refusal(422, "invalid", f"{first['msg']}", field=field_of(location) or "body")


def _of(values: list[T] | None, number: int, field: str, wanted: int) -> T | None:
    """One query's own of a list that has one for each, where there is a list."""
    if values is not None and len(values) != wanted:
        raise Refusal(422, "invalid", f"{len(values)} items for {wanted} queries", field=field)
    return None if values is None else values[number]


def _place_in_query(number: int, refusal: Refusal) -> str:
    return f"images[{number}]" if ".image_url" in refusal.field else f"query[{number}]"


async def _gone(request: Request) -> None:
    """Wait until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
