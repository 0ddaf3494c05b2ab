"""The population does what the docstring of `stream.synthetic` says."""

from collections import Counter, defaultdict
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from models.contract import SCENARIOS
from stream.errors import UserError
from stream.events import EVENT_MODELS
from stream.synthetic import DAY_MS, END_MS, SPAN_MS, Population, search_burst, synthesize
from stream.vocabulary import SUBTOPICS


@pytest.fixture(scope="module")
def population() -> Population:
    return synthesize()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 300), st.integers(1, 100), st.integers())
def test_any_size_is_exact_sorted_valid_and_never_in_the_future(users: int, events: int, items: int, seed: int) -> None:
    population = synthesize(users, events, items, seed, run="x")
    assert len(population.acts) == events
    assert len(population.catalogue.items) == items
    assert len(population.interests) == users
    times = [act.record["ts"] for act in population.acts]
    assert times == sorted(times)
    assert times[-1] <= END_MS
    known = set(population.catalogue.subtopics)
    for act in population.acts:
        TypeAdapter(EVENT_MODELS[act.scenario]).validate_python(act.record)
        assert None not in act.record.values()
        assert act.record.get("item_id") in known | {None}


def test_the_default_population(population: Population) -> None:
    assert len(population.acts) == 20_000
    assert len({act.record["user_id"] for act in population.acts}) == 500
    assert len({act.record["event_id"] for act in population.acts}) == 20_000
    assert population.acts[0].record["ts"] >= END_MS - SPAN_MS
    assert population.acts[-1].record["ts"] > END_MS - DAY_MS
    assert {len(shelf) > 5 for shelf in population.catalogue.shelves.values()} == {True}


def test_a_seed_gives_the_same_population_and_another_seed_another() -> None:
    def small(seed: int) -> Population:
        return synthesize(20, 500, 100, seed)

    assert small(1) == small(1)
    assert small(1).acts != small(2).acts
    assert small(1).catalogue != small(2).catalogue


def test_the_end_only_moves_the_events_in_time() -> None:
    here, later = synthesize(5, 200, 80), synthesize(5, 200, 80, end_ms=END_MS + 1_234_567)
    assert [act.record["ts"] + 1_234_567 for act in here.acts] == [act.record["ts"] for act in later.acts]


def test_runs_do_not_share_event_ids() -> None:
    first, second = ({act.record["event_id"] for act in synthesize(5, 100, 80, run=run).acts} for run in ("a", "b"))
    assert not first & second


def test_no_user_acts_twice_in_a_millisecond(population: Population) -> None:
    assert len({(act.record["user_id"], act.record["ts"]) for act in population.acts}) == len(population.acts)


def test_an_event_is_about_what_its_item_is_about(population: Population) -> None:
    about = population.catalogue.subtopics
    assert all(about[act.record["item_id"]] == act.subtopic for act in population.acts if "item_id" in act.record)


def test_events_caused_by_interests_come_from_an_interest_that_shows(population: Population) -> None:
    for act in population.acts:
        if act.cause == "interest":
            interests = population.interests[act.record["user_id"]]
            showing = {i.subtopic for i in interests if i.shows(act.scenario, act.record["ts"])}
            assert act.subtopic in showing


def test_a_new_interest_appears_in_search_before_feed_and_in_feed_before_discovery(population: Population) -> None:
    delays = defaultdict(list)
    first: dict[tuple[str, str, str], int] = {}
    for act in population.acts:
        if act.cause == "interest":
            first.setdefault((act.record["user_id"], act.subtopic, act.scenario), act.record["ts"])
    for interest in (i for planted in population.interests.values() for i in planted):
        assert interest.lag_ms["search"] < interest.lag_ms["feed"] < interest.lag_ms["discovery"]
        if interest.born_ms > END_MS - SPAN_MS:
            for scenario in SCENARIOS:
                seen = first.get((interest.user_id, interest.subtopic, scenario))
                delays[scenario] += [seen - interest.born_ms] if seen else []
    assert min(delays["feed"]) >= DAY_MS
    assert min(delays["discovery"]) >= 3 * DAY_MS
    assert mean(delays["search"]) < mean(delays["feed"]) < mean(delays["discovery"])


def test_interests_drift(population: Population) -> None:
    for planted in population.interests.values():
        alive = [len([i for i in planted if i.shows("search", END_MS - ago * DAY_MS - 1)]) for ago in range(30)]
        assert 2 <= min(alive) <= max(alive) <= 4
        assert len({i.subtopic for i in planted}) == len(planted)
    changed = [p for p in population.interests.values() if any(i.born_ms > END_MS - SPAN_MS for i in p)]
    assert len(changed) > 400


def test_scenarios_have_their_habits(population: Population) -> None:
    acts = {name: [act for act in population.acts if act.scenario == name] for name in SCENARIOS}
    shares = {name: len(acts[name]) / len(population.acts) for name in SCENARIOS}
    assert shares == pytest.approx({"search": 0.35, "feed": 0.45, "discovery": 0.20}, abs=0.03)
    on_interest = {name: mean(act.cause == "interest" for act in acts[name]) for name in SCENARIOS}
    assert on_interest["search"] > on_interest["feed"] > 0.8 > 0.5 > on_interest["discovery"]
    assert all("item_id" not in act.record for act in acts["search"] if act.record["action"] == "search")
    assert all(act.record["query"] for act in acts["search"])
    assert all(act.record["dwell_ms"] >= 0 for act in acts["feed"])
    assert all(act.record["channel"] for act in acts["discovery"])
    assert _age_days(population, "search") < _age_days(population, "feed")


def _age_days(population: Population, scenario: str) -> float:
    born = {(i.user_id, i.subtopic): i.born_ms for planted in population.interests.values() for i in planted}
    ages = [
        act.record["ts"] - born[act.record["user_id"], act.subtopic]
        for act in population.acts
        if act.scenario == scenario and act.cause == "interest"
    ]
    return mean(ages) / DAY_MS


def test_noise_is_disliked_more_often(population: Population) -> None:
    skipped: dict[str, list[bool]] = defaultdict(list)
    for act in population.acts:
        if act.scenario == "feed":
            skipped[act.cause].append(act.record["action"] in ("skip", "hide"))
    assert mean(skipped["noise"]) > 3 * mean(skipped["interest"])


def test_items_repeat_and_some_are_popular(population: Population) -> None:
    met = Counter((act.record["user_id"], act.record["item_id"]) for act in population.acts if "item_id" in act.record)
    assert 0.1 < 1 - len(met) / met.total() < 0.5
    about = Counter(act.record["item_id"] for act in population.acts if "item_id" in act.record)
    for shelf in population.catalogue.shelves.values():
        assert about[shelf[0]] > mean(about[item] for item in shelf)


def test_words_are_the_same_whatever_the_seed() -> None:
    def words(seed: int) -> set[str]:
        return {word for item in synthesize(1, 1, 4_000, seed).catalogue.items for word in item.content.split()}

    assert len(words(1) ^ words(2)) < len(words(1)) * 0.01


def test_titles_say_what_an_item_is_about(population: Population) -> None:
    things = {subtopic.name: subtopic.things for subtopic in SUBTOPICS}
    for item in population.catalogue.items:
        assert item.title.endswith(things[population.catalogue.subtopics[item.item_id]])
    shared = Counter(thing for subtopic in SUBTOPICS for thing in subtopic.things)
    assert shared.most_common(1)[0][1] == 1


def test_a_burst_is_foreign_searches_up_to_now(population: Population) -> None:
    for user_id in ("u000000", "u000123"):
        subtopic = population.foreign_subtopic(user_id)
        assert subtopic not in {interest.subtopic for interest in population.interests[user_id]}
        acts = search_burst(population.catalogue, user_id, subtopic, END_MS, n=10, run="r")
        assert acts == search_burst(population.catalogue, user_id, subtopic, END_MS, n=10, run="r")
        assert len({act.record["event_id"] for act in acts}) == 10
        assert acts[-1].record["ts"] == END_MS
        assert acts[0].record["action"] == "search"
        for act in acts:
            TypeAdapter(EVENT_MODELS["search"]).validate_python(act.record)
            assert population.catalogue.subtopics.get(act.record.get("item_id"), subtopic) == subtopic


@pytest.mark.parametrize("wrong", [{"users": 0}, {"events": 0}, {"items": -1}])
def test_an_empty_population_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
        synthesize(**wrong)
