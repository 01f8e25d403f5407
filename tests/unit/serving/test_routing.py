"""Who answers: the laws of canaries and shadows."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.errors import ModelNotFound, VersionNotFound
from app.serving.routing import Route, route
from app.specs.alias import Alias
from app.storage.models import ModelStore
from tests.samples import publish, untrained

KEYS = [f"user-{number}" for number in range(2000)]
TOLERANCE = 0.05  # more than four standard deviations of a share of 2000

keys = st.text(max_size=40)
percents = st.floats(0, 100)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("routing"))
    model = untrained(pl.DataFrame({"x": [1.0, 2.0], "y": [0.5, 1.5]}))
    for _ in range(3):
        publish(store, model)
    publish(store, model, "other")
    return store


def point(store: ModelStore, name: str = "m", **to: object) -> None:
    store.set_alias(name, "live", Alias.model_validate({"version": "1", **to}))


def canary(store: ModelStore, percent: float, version: str = "2") -> None:
    point(store, canary={"version": version, "percent": percent})


def share(store: ModelStore, keys: list[str] | list[None], version: str) -> float:
    return sum(route(store, "m", "live", key).version == version for key in keys) / len(keys)


@pytest.mark.parametrize(("selector", "version"), [(None, None), ("2", "2"), ("plain", "1")])
def test_without_a_canary_all_requests_go_where_they_say(
    store: ModelStore, selector: str | None, version: str | None
) -> None:
    store.set_alias("m", "plain", Alias(version="1"))
    canary(store, 100)
    assert {route(store, "m", selector, key) for key in KEYS[:50]} == {Route(version)}


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99, 100])
def test_a_canary_has_its_share(store: ModelStore, percent: float) -> None:
    canary(store, percent)
    assert share(store, KEYS, "2") == pytest.approx(percent / 100, abs=TOLERANCE if 0 < percent < 100 else 0)
    unkeyed = [None] * len(KEYS)
    assert share(store, unkeyed, "2") == pytest.approx(percent / 100, abs=TOLERANCE if 0 < percent < 100 else 0)


@given(keys, percents)
def test_a_key_goes_the_same_way_each_time_and_in_every_process(store: ModelStore, key: str, percent: float) -> None:
    canary(store, percent)
    assert route(store, "m", "live", key) == route(ModelStore(store.root), "m", "live", key)


@given(keys, percents, percents)
def test_a_share_that_grows_keeps_those_that_it_had(store: ModelStore, key: str, one: float, other: float) -> None:
    canary(store, min(one, other))
    was_in = route(store, "m", "live", key).version == "2"
    canary(store, max(one, other))
    assert route(store, "m", "live", key).version == "2" or not was_in


def test_each_canary_draws_anew(store: ModelStore) -> None:
    drawn = []
    for version in ("2", "3"):
        canary(store, 50, version)
        drawn.append({key for key in KEYS if route(store, "m", "live", key).version == version})
    assert len(drawn[0] & drawn[1]) / len(KEYS) == pytest.approx(0.25, abs=TOLERANCE)


def test_a_shadow_never_answers(store: ModelStore) -> None:
    point(store, shadow={"version": "2"})
    assert {route(store, "m", "live", key) for key in KEYS[:50]} == {Route("1", "2", drawn=True)}


def test_a_shadow_has_its_share_whoever_answers(store: ModelStore) -> None:
    point(store, canary={"version": "2", "percent": 50}, shadow={"version": "3", "percent": 50})
    routes = [route(store, "m", "live", key) for key in KEYS]
    for version in ("1", "2"):
        answered = [found for found in routes if found.version == version]
        assert sum(found.shadow == "3" for found in answered) / len(answered) == pytest.approx(0.5, abs=TOLERANCE)


def test_a_canary_is_not_its_own_shadow(store: ModelStore) -> None:
    point(store, canary={"version": "2", "percent": 50}, shadow={"version": "2"})
    assert {route(store, "m", "live", key) for key in KEYS[:50]} == {
        Route("1", "2", drawn=True),
        Route("2", instead="1", drawn=True),
    }


def test_what_is_not_there(store: ModelStore) -> None:
    with pytest.raises(VersionNotFound):
        route(store, "m", "nowhere")
    with pytest.raises(ModelNotFound):
        route(store, "nowhere", "live")


@pytest.mark.parametrize(
    "wrong",
    [
        {"canary": {"version": "2"}},
        {"canary": {"version": "2", "percent": 101}},
        {"canary": {"version": "2", "percent": -1}},
        {"canary": {"version": "2", "percent": float("nan")}},
        {"canary": {"version": "1", "percent": 5}},
        {"shadow": {"version": "1"}},
        {"shadow": {"version": "2", "ratio": 5}},
    ],
)
def test_what_is_no_alias(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Alias.model_validate({"version": "1", **wrong})
