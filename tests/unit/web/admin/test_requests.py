"""The HTTP API's routes, bodies, queries and errors, over a stand-in for the broker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import falcon.testing
import gevent
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from prouter.errors import AgentUnavailable, LimitReached, NotFound, PRouterError, StartFailed
from prouter.web.admin import responses
from prouter.web.admin.app import create_app
from tests.support.api_stand import CONNECTION, JOB, PATH, PLATFORM, StandInRouter, job_info

CREATE = {"name": "a job", "agent": {"type": "uid", "uid": "a"}}
START = {"args": ["true"], "env": {}}


@pytest.fixture
def router() -> Iterator[StandInRouter]:
    with gevent.Timeout(10):
        yield StandInRouter()


@pytest.fixture
def client(router: StandInRouter) -> falcon.testing.TestClient:
    return falcon.testing.TestClient(create_app(router, router.config, router.gate))  # type: ignore[arg-type]


Client = falcon.testing.TestClient


def problem(result: falcon.testing.Result, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, checked for everything that all of them have."""
    assert result.status_code == status
    assert result.headers["content-type"] == "application/problem+json"
    assert result.headers["cache-control"] == "no-store, must-revalidate"
    assert result.headers["x-prouter-error"] == code
    document: dict[str, Any] = result.json
    responses.Problem.model_validate(document)
    assert document["status"] == status
    assert document["code"] == code
    assert document["request_id"] == result.headers["x-request-id"]
    return document


def last(router: StandInRouter, op: str) -> dict[str, Any]:
    """The arguments of the last call, which is `op`."""
    assert router.calls[-1][0] == op
    return router.calls[-1][1]


# -- what a job's page asks for outside its prefix -----------------------------------------------------------------

PAGE = f"http://localhost:8888{PATH}/http/index.html?token=s3cret"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", ["/static/x.js", "/login", f"{PATH}/static/x.js"])
def test_an_application_that_asks_outside_its_prefix_is_told(client: Client, method: str, path: str) -> None:
    for referer in (PAGE, f"https://example.org/proxied{PATH}/http", f"http://localhost{PATH}/http/"):
        result = client.simulate_request(method, path, headers={"Referer": referer})
        assert result.status_code == 404
        assert result.headers["x-prouter-error"] == "outside_prefix"
        if method != "HEAD":
            detail = problem(result, 404, "outside_prefix")["detail"]
            for word in ("outside its prefix", "preset", "expose.path", "'keep'", "control.job_domain", PATH):
                assert word in detail
            assert "s3cret" not in detail


def test_a_browser_that_went_outside_gets_a_page(client: Client) -> None:
    headers = {"Referer": PAGE, "Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    result = client.simulate_get("/hub/<b>", headers=headers)
    assert (result.status_code, result.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "control.job_domain" in result.text
    assert "<b>" not in result.text


@pytest.mark.parametrize("referer", ["", "http://localhost/", f"http://localhost{PATH}/httpx/", "/jobs//http/", "\xff"])
def test_who_asks_from_elsewhere_is_told_nothing_of_jobs(client: Client, referer: str) -> None:
    headers = {"Referer": referer} if referer else {}
    problem(client.simulate_get("/static/x.js", headers=headers), 404, "not_found")


# -- the router -------------------------------------------------------------------------------------------------


def test_info_is_asked_for_once(client: Client, router: StandInRouter) -> None:
    router.answers["info"] = {"auth": {"uid": "r", "name": "n"}, "platform": PLATFORM}
    for path in ("/info", "/info/", "/info?x=1"):
        result = client.simulate_get(path)
        assert result.json == {"auth": {"uid": "r", "name": "n"}, "platform": PLATFORM}
        assert result.headers["cache-control"] == "no-store, must-revalidate"
    assert len(router.calls) == 1


def test_connections_are_polled_cheaply(client: Client, router: StandInRouter) -> None:
    router.answers["connections"] = {"connections": b'{"connections":[{"uid":"c1"}]}', "etag": "v1"}
    first = client.simulate_get("/connections")
    assert first.json == {"connections": [{"uid": "c1"}]}
    again = client.simulate_get("/connections", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""


def test_connections_are_never_older_than_the_request(client: Client, router: StandInRouter) -> None:
    router.answers["connections"] = {"connections": b'{"connections":[{"uid":"c1"}]}', "etag": "v1"}
    client.simulate_get("/connections")
    router.answers["connections"] = {"connections": b'{"connections":[]}', "etag": "v2"}
    assert client.simulate_get("/connections").json == {"connections": []}, "no event has told this worker yet"
    assert router.calls[-1] == ("connections", {"etag": "v1"})


def test_an_unchanged_list_of_connections_is_kept(client: Client, router: StandInRouter) -> None:
    router.answers["connections"] = {"connections": b'{"connections":[{"uid":"c1"}]}', "etag": "v1"}
    client.simulate_get("/connections")
    router.answers["connections"] = {"unchanged": True, "etag": "v1"}
    assert client.simulate_get("/connections").json == {"connections": [{"uid": "c1"}]}


def test_one_connection(client: Client, router: StandInRouter) -> None:
    router.answers["connections"] = {"connections": b'{"connections":[{"uid":"c1"}]}', "etag": "v1"}
    assert client.simulate_get("/connections/c1").json == {"uid": "c1"}
    document = problem(client.simulate_get("/connections/c2"), 404, "not_found")
    assert document["detail"] == "connection 'c2' is not found"


@pytest.mark.parametrize(("verb", "on"), [("drain", True), ("resume", False)])
def test_drain_and_resume(client: Client, router: StandInRouter, verb: str, on: bool) -> None:
    router.answers["agents.drain"] = {}
    listed = json.dumps({"connections": [{"uid": "c1", "draining": not on}]}).encode()
    router.answers["connections"] = {"connections": listed, "etag": "v1"}
    assert client.simulate_post(f"/connections/c1/{verb}").json == {"uid": "c1", "draining": on}
    assert ("agents.drain", {"connection": "c1", "on": on}) in router.calls


def test_shutdown_is_answered_empty(client: Client, router: StandInRouter) -> None:
    router.answers["shutdown"] = {}
    result = client.simulate_post("/shutdown", body="{}")
    assert (result.status_code, result.content) == (200, b"")


def test_readiness_is_asked_of_the_broker(client: Client, router: StandInRouter) -> None:
    def drain(args: dict[str, Any]) -> dict[str, Any]:
        router.router_draining = True  # the news come before the answer
        return {}

    router.answers["sync"] = AgentUnavailable("no answer")
    problem(client.simulate_get("/readyz"), 503, "broker_away")
    router.answers["sync"] = drain
    problem(client.simulate_get("/readyz"), 503, "draining")


def test_readiness_follows_the_broker_and_draining(client: Client, router: StandInRouter) -> None:
    assert client.simulate_get("/healthz").json == {"status": "ok"}
    assert client.simulate_get("/readyz").json == {"status": "ready"}
    router.ready = False
    result = client.simulate_get("/readyz")
    problem(result, 503, "broker_away")
    assert result.headers["retry-after"] == "1"
    router.router_draining = True
    problem(client.simulate_get("/readyz"), 503, "draining")
    assert client.simulate_get("/healthz").status_code == 200


def test_metrics_hold_the_brokers_and_the_workers_figures(client: Client, router: StandInRouter) -> None:
    router.answers["stats"] = {"metrics": {"links.up": 3, "jobs.RUNNING": 2, "cpu_seconds": 1.5, "total.new": 7}}
    before = samples(client.simulate_get("/metrics").text)
    client.simulate_get("/nowhere")
    result = client.simulate_get("/metrics")
    assert result.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(result.text)
    assert found["prouter_broker_up"] == 1
    assert found["prouter_broker_links_up"] == 3
    assert found["prouter_broker_jobs_RUNNING"] == 2
    assert found["prouter_broker_cpu_seconds_total"] == 1.5
    assert found["prouter_broker_new_total"] == 7, "a figure that this worker does not know"
    assert found["prouter_broker_floods_total"] == 0, "a counter is there before it counts"
    assert found["prouter_worker_streams"] == 0
    for status, more in ("2xx", 1), ("4xx", 1):
        name = f'prouter_worker_requests_total{{method="GET",status="{status}",to="api"}}'
        assert found[name] == before.get(name, 0) + more
    count = 'prouter_worker_response_seconds_count{to="api"}'
    assert found[count] == before[count] + 2
    assert found[count] == found['prouter_worker_response_seconds_bucket{le="+Inf",to="api"}']
    router.answers["stats"] = AgentUnavailable("away")
    assert samples(client.simulate_get("/metrics").text)["prouter_broker_up"] == 0


def samples(text: str) -> dict[str, float]:
    """By name and labels; read by Prometheus's own rules."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_metrics_come_in_openmetrics_for_who_prefers_that(client: Client, router: StandInRouter) -> None:
    router.answers["stats"] = {"metrics": {"links.up": 3, "total.links_up": 4}}
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    result = client.simulate_get("/metrics", headers=accept)
    assert result.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in openmetrics.text_string_to_metric_families(result.text)}  # type: ignore[no-untyped-call]
    assert families["prouter_worker_requests"] == "counter"
    assert families["prouter_worker_response_seconds"] == "histogram"
    assert families["prouter_broker_links_up"] == "gauge"


def test_the_dashboard_is_a_page_of_its_own(client: Client) -> None:
    result = client.simulate_get("/")
    assert result.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in result.headers["content-security-policy"]


# -- jobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}])
def test_create_whatever_the_content_type(client: Client, router: StandInRouter, headers: dict[str, str]) -> None:
    router.answers["jobs.create"] = {"job": job_info()}
    result = client.simulate_post("/jobs/create", body=json.dumps(CREATE), headers=headers)
    assert result.status_code == 200
    responses.JobInfo.model_validate(result.json)
    op, args = router.calls[-1]
    assert op == "jobs.create"
    assert args["agent"] == {"type": "uid", "uid": "a"}


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("", "body is missing"),
        ("{", "not JSON"),
        ('{"name": NaN}', "not JSON"),
        ('"\\ud800"', "not JSON"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "Input should be"),
        ('{"name": 1, "agent": {"type": "uid", "uid": "a"}}', "name: "),
        ('{"name": "n", "agent": {"type": "uid"}}', "agent.uid.uid: "),
        ('{"name": "n", "agent": {"type": "uid", "uid": "a"}, "more": 1}', "more: "),
        ('{"name": "n", "agent": {"type": "select", "uids": []}}', "agent.select.uids: "),
    ],
)
def test_a_wrong_body_is_refused_and_told_where(client: Client, body: str, where: str) -> None:
    document = problem(client.simulate_post("/jobs/create", body=body.encode("latin-1")), 400, "invalid_request")
    assert document["detail"].startswith("Invalid request")
    assert where in document["detail"]


def test_a_number_too_large_for_the_fabric_is_refused(client: Client, router: StandInRouter) -> None:
    body = {"name": "n", "agent": {"type": "any", "properties": {"x": 2**70}}}
    document = problem(client.simulate_post("/jobs/create", body=json.dumps(body)), 400, "invalid_request")
    assert "properties" in document["detail"]
    assert router.calls == []


def test_a_body_over_the_limit_is_refused_unread(client: Client) -> None:
    result = client.simulate_post("/jobs/create", headers={"Content-Length": str(2**20 + 1)})
    problem(result, 413, "too_large")


def test_start_passes_every_field_on(client: Client, router: StandInRouter) -> None:
    router.answers["jobs.start"] = {"job": job_info(state="RUNNING")}
    body = {**START, "cwd": "sub", "port_expected_count": 2, "expose": {"port": "assign"}, "name": "ignored"}
    assert client.simulate_post(f"{PATH}/start/", body=json.dumps(body)).json["state"] == "RUNNING"
    args: dict[str, Any] = router.calls[-1][1]
    assert (args["connection"], args["job"]) == (CONNECTION, JOB)
    assert args["request"]["cwd"] == "sub"
    assert args["request"]["expose"]["port"] == "assign"


def test_a_repeat_has_the_same_key_for_the_same_purpose_only(client: Client, router: StandInRouter) -> None:
    router.answers["jobs.create"] = {"job": job_info()}
    router.answers["jobs.start"] = {"job": job_info(state="RUNNING")}
    headers = {"Idempotency-Key": "k1"}
    for _ in range(2):
        client.simulate_post("/jobs/create", body=json.dumps(CREATE), headers=headers)
    client.simulate_post(f"{PATH}/start", body=json.dumps(START), headers=headers)
    client.simulate_post("/jobs/create", body=json.dumps(CREATE))
    first, second, start, other = [args["key"] for _op, args in router.calls]
    assert first == second
    assert len({first, start, other}) == 3
    result = client.simulate_post("/jobs/create", body=json.dumps(CREATE), headers={"Idempotency-Key": "k" * 256})
    problem(result, 400, "invalid_request")


def test_run_creates_and_starts_under_one_key(client: Client, router: StandInRouter) -> None:
    router.answers["jobs.create"] = {"job": job_info()}
    router.answers["jobs.start"] = {"job": job_info(state="RUNNING")}
    body = json.dumps({"name": "n", "args": ["true"], "port_expected_count": 0})
    result = client.simulate_post("/jobs/run", body=body, headers={"Idempotency-Key": "k"})
    assert (result.status_code, result.json["state"]) == (200, "RUNNING")
    assert result.headers["location"] == f"{PATH}/info"
    assert [op for op, _args in router.calls] == ["jobs.create", "jobs.start"]
    assert router.calls[0][1]["key"] != router.calls[1][1]["key"]
    router.answers["jobs.wait"] = {"job": job_info(state="FINISHED"), "ended": True}
    assert client.simulate_post("/jobs/run?wait=5", body=body).json["state"] == "FINISHED"


@pytest.mark.parametrize(("state", "status"), [("FINISHED", 200), ("NEW", 200), ("RUNNING", 202), ("PENDING", 202)])
def test_wait_says_by_its_status_whether_it_is_over(
    client: Client, router: StandInRouter, state: str, status: int
) -> None:
    router.answers["jobs.wait"] = {"job": job_info(state=state), "ended": state == "FINISHED"}
    now = time.monotonic()
    assert client.simulate_post(f"{PATH}/wait?timeout=100", body="anything").status_code == status
    assert now + 100 <= router.calls[-1][1]["until"] <= time.monotonic() + 100
    assert client.simulate_post(f"{PATH}/wait").status_code == status
    assert router.calls[-1][1]["until"] is None


@pytest.mark.parametrize("value", ["x", "-1", "nan", "inf", "1e99", "1e999", "%201", "1_0", "%EF%BC%91", "."])
def test_a_wrong_timeout_is_refused(client: Client, value: str) -> None:
    document = problem(client.simulate_post(f"{PATH}/wait?timeout={value}"), 400, "invalid_request")
    assert "'timeout'" in document["detail"]


def test_info_by_get_and_by_post(client: Client, router: StandInRouter) -> None:
    router.answers["jobs.info"] = {"job": job_info()}
    assert client.simulate_get(f"{PATH}/info").json["uid"] == JOB
    assert client.simulate_post(f"{PATH}/info", body="{}").json["uid"] == JOB
    assert [args["usage"] for _op, args in router.calls] == [False, False]
    client.simulate_get(f"{PATH}/info?usage=1")
    assert router.calls[-1][1]["usage"] is True


def test_remove_signal_and_stop(client: Client, router: StandInRouter) -> None:
    for op in ("jobs.remove", "jobs.signal", "jobs.stop"):
        router.answers[op] = {"job": job_info(state="FINISHED")}
    assert client.simulate_post(f"{PATH}/remove").json["state"] == "FINISHED"
    client.simulate_post(f"{PATH}/signal", body='{"signal": "usr1"}')
    assert last(router, "jobs.signal") == {"connection": CONNECTION, "job": JOB, "signal": "SIGUSR1"}
    client.simulate_post(f"{PATH}/stop")
    assert last(router, "jobs.stop")["grace"] == 10.0
    client.simulate_post(f"{PATH}/stop", body='{"grace": 1}')
    assert last(router, "jobs.stop")["grace"] == 1
    problem(client.simulate_post(f"{PATH}/signal", body='{"signal": "NOPE"}'), 400, "invalid_request")


def test_the_list_of_jobs_is_filtered_and_paged(client: Client, router: StandInRouter) -> None:
    job = json.dumps(job_info(), separators=(",", ":")).encode()
    router.answers["jobs.list"] = {"jobs": job, "count": 1, "next": None}
    result = client.simulate_get("/jobs?state=RUNNING&agent=a&name=n&owner=o&limit=5&cursor=c1")
    responses.JobList.model_validate(result.json)
    assert result.headers["Content-Type"] == "application/json"
    wanted = {"states": ["RUNNING"], "agent": "a", "name": "n", "owner": "o", "limit": 5, "cursor": "c1"}
    assert router.calls[-1] == ("jobs.list", wanted)
    client.simulate_get("/jobs")
    assert (router.calls[-1][1]["limit"], router.calls[-1][1]["states"]) == (100, [])
    for query in ("state=NEW,PENDING", "state=NEW&state=PENDING"):
        client.simulate_get(f"/jobs?{query}")
        assert router.calls[-1][1]["states"] == ["NEW", "PENDING"]
    for query in ("limit=0", "limit=1001", "limit=x", "state=ASLEEP", "state=NEW,ASLEEP", "state=NEW,"):
        problem(client.simulate_get(f"/jobs?{query}"), 400, "invalid_request")


def test_a_page_is_as_long_as_asked_for_though_the_broker_gives_it_in_portions(
    client: Client, router: StandInRouter
) -> None:
    job = json.dumps(job_info()).encode()

    def portion(args: dict[str, Any]) -> dict[str, Any]:
        count = min(250, args["limit"])
        return {"jobs": b",".join([job] * count), "count": count, "next": f"after {args['cursor']}"}

    router.answers["jobs.list"] = portion
    found = client.simulate_get("/jobs?limit=600").json
    assert len(found["jobs"]) == 600
    assert found["next"] == "after after after None"
    assert [args["limit"] for _op, args in router.calls] == [600, 350, 100]
    router.answers["jobs.list"] = {"jobs": b"", "count": 0, "next": None}
    assert client.simulate_get("/jobs?limit=600").json == {"jobs": [], "next": None}


# -- errors -----------------------------------------------------------------------------------------------------


def test_the_brokers_errors_keep_status_text_and_fields(client: Client, router: StandInRouter) -> None:
    router.answers["jobs.info"] = NotFound(f"job '{JOB}' is not found", job=JOB, state="CLOSED")
    document = problem(client.simulate_get(f"{PATH}/info"), 404, "not_found")
    assert document["detail"] == f"job '{JOB}' is not found"
    assert (document["job"], document["state"]) == (JOB, "CLOSED")
    router.answers["jobs.create"] = LimitReached("no free slot", retry_after=2.4)
    result = client.simulate_post("/jobs/create", body=json.dumps(CREATE))
    problem(result, 429, "limit_reached")
    assert result.headers["retry-after"] == "3"
    router.answers["jobs.start"] = StartFailed("no module named x", job=JOB)
    problem(client.simulate_post(f"{PATH}/start", body=json.dumps(START)), 502, "start_failed")


@pytest.mark.parametrize("path", ["/nope", "/jobs/x", "/jobs/a/b", "/jobs/a/b/nope", "//info", "/connections/a/b"])
def test_an_unknown_path_is_not_found(client: Client, path: str) -> None:
    assert path in problem(client.simulate_get(path), 404, "not_found")["detail"]


def test_a_wrong_method_is_told_the_right_ones(client: Client) -> None:
    result = client.simulate_get("/jobs/create")
    problem(result, 405, "method_not_allowed")
    assert "POST" in result.headers["allow"]
    assert ", only " in problem(result, 405, "method_not_allowed")["detail"]
    problem(client.simulate_request("BREW", "/info"), 400, "invalid_request")


def test_a_crash_is_a_500_that_tells_nothing_but_its_id(
    client: Client, router: StandInRouter, caplog: pytest.LogCaptureFixture
) -> None:
    router.answers["jobs.info"] = RuntimeError("secret")
    document = problem(client.simulate_get(f"{PATH}/info"), 500, "internal")
    assert "secret" not in document["detail"]
    assert document["request_id"] in caplog.text


def test_an_error_of_ours_without_retry_after_still_asks_for_patience(client: Client, router: StandInRouter) -> None:
    router.answers["jobs.info"] = AgentUnavailable("away")
    assert client.simulate_get(f"{PATH}/info").headers["retry-after"] == "1"
    router.answers["jobs.info"] = PRouterError("broken", code="odd")
    assert "retry-after" not in client.simulate_get(f"{PATH}/info").headers


def test_a_request_id_that_is_sent_is_used_if_it_is_harmless(client: Client) -> None:
    assert client.simulate_get("/healthz", headers={"X-Request-ID": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    odd = client.simulate_get("/healthz", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]
    assert odd != "a b\tc"


def test_guards_see_every_request_first(router: StandInRouter) -> None:
    class Nobody:
        def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
            raise PRouterError("not you", code="guarded")

    client = falcon.testing.TestClient(create_app(router, router.config, router.gate, guards=[Nobody()]))  # type: ignore[arg-type]
    problem(client.simulate_get("/info"), 500, "guarded")
    problem(client.simulate_get("/nope"), 500, "guarded")


@pytest.mark.parametrize(
    "path", ["/", "/info", "/connections", "/jobs", "/healthz", "/readyz", "/metrics", "/openapi.json", f"{PATH}/info"]
)
def test_head_is_get_without_a_body(client: Client, router: StandInRouter, path: str) -> None:
    router.answers["info"] = {"auth": {}, "platform": {}}
    router.answers["connections"] = {"connections": b'{"connections":[]}', "etag": "1"}
    router.answers["jobs.list"] = {"jobs": b"", "count": 0, "next": None}
    router.answers["jobs.info"] = {"job": job_info()}
    router.answers["stats"] = {"metrics": {}}
    head, get = client.simulate_head(path), client.simulate_get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    if path != "/metrics":
        assert head.headers["Content-Length"] == str(len(get.content))


def test_head_opens_nothing_that_stays_open(client: Client, router: StandInRouter) -> None:
    router.answers["events"] = {"events": [], "first": 1, "last": 0}
    head = client.simulate_head("/events")
    assert (head.status_code, head.content) == (200, b"")
    assert "Content-Length" not in head.headers
    problem_head = client.simulate_head("/jobs/create")
    assert problem_head.status_code == 405
