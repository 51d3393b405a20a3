"""The query grammar, and which runs make an arm. The bugs of the reference are tests here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zerozoo.runs.errors import UserError
from zerozoo.runs.queries import (
    Arm,
    FilterSet,
    Selector,
    arms_of_filters,
    arms_of_runs,
    group_runs,
    parse_filter_set,
    parse_selector,
    select_runs,
)
from zerozoo.runs.records import Record, read_record
from zerozoo.runs.store import Store

HEAD = "?we=openrlbenchmark&wpn=cleanrl&ceik=env_id&cen=exp_name&metric=charts/episodic_return"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ppo", Selector("ppo")),
        ("ppo?", Selector("ppo")),
        ("ppo?tag=v1", Selector("ppo", tags=("v1",))),
        ("ppo?tag=v1.0.0-27-gde3f410&tag=pr-371", Selector("ppo", tags=("v1.0.0-27-gde3f410", "pr-371"))),
        ("ppo?tag=v1&tag=v1", Selector("ppo", tags=("v1",))),
        ("sac?user=ann&user=bob", Selector("sac", users=("ann", "bob"))),
        ("ppo?seed=1&seed=2", Selector("ppo", where={"seed": ("1", "2")})),
        ("ppo?seed=1&lr=3e-4&seed=2", Selector("ppo", where={"seed": ("1", "2"), "lr": ("3e-4",)})),
        ("baselines-ppo2-mlp?cl=openai/baselines PPO2", Selector("baselines-ppo2-mlp", legend="openai/baselines PPO2")),
        ("ppo?cl=two\\nlines", Selector("ppo", legend="two\nlines")),
        ("ppo?cl=A+B%20C%26D%3DE", Selector("ppo", legend="A B C&D=E")),
        ("a:b#c/d;e?net.width=64", Selector("a:b#c/d;e", where={"net.width": ("64",)})),
        ("ppo?q=what?&tag=a=b", Selector("ppo", tags=("a=b",), where={"q": ("what?",)})),
        (
            "ppo?tag=t&user=u&seed=1&cl=L&tag=t2",
            Selector("ppo", tags=("t", "t2"), users=("u",), where={"seed": ("1",)}, legend="L"),
        ),
    ],
)
def test_selectors(text: str, expected: Selector) -> None:
    assert parse_selector(text) == expected


def test_zerozoos_own_runs_need_no_keys() -> None:
    own = parse_filter_set(["?wpn=zerozoo", "ppo"])
    assert (own.environment_key, own.algorithm_key, own.step_key, own.metric) == ("environment", "recipe", "step", "")
    said = parse_filter_set(["?wpn=zerozoo&metric=reward&ceik=task", "ppo"])
    assert (said.environment_key, said.algorithm_key, said.metric) == ("task", "recipe", "reward")


def test_a_filter_set_of_the_readme() -> None:
    found = parse_filter_set([HEAD, "ppo_continuous_action?tag=v1&cl=CleanRL PPO", "sac"])
    assert found == FilterSet(
        selectors=(Selector("ppo_continuous_action", ("v1",), legend="CleanRL PPO"), Selector("sac")),
        entity="openrlbenchmark",
        project="cleanrl",
    )
    own = parse_filter_set(["?ceik=environment&cen=recipe&xaxis=step&metric=test/reward", "ppo"])
    assert (own.environment_key, own.algorithm_key, own.step_key) == ("environment", "recipe", "step")
    assert (own.metric, own.entity, own.project) == ("test/reward", "", "")


def test_defaults_are_the_references() -> None:
    found = parse_filter_set(["?", "ppo"])
    assert (found.metric, found.step_key) == ("charts/episodic_return", "global_step")
    assert (found.environment_key, found.algorithm_key) == ("env_id", "exp_name")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "a filter set is"),
        ([HEAD], "a filter set is"),
        (["wpn=x", "ppo"], "begins with '\\?' and has no name before it"),
        (["ppo?tag=x", "ppo"], "begins with '\\?' and has no name before it"),
        (["?wp=x", "ppo"], "unknown key 'wp' in '\\?wp=x'; did you mean 'wpn'\\?"),
        (["?zzzzzz=x", "ppo"], "unknown key 'zzzzzz' .*; its keys are we, wpn"),
        (["?we=x&we=y", "ppo"], "'we' can be given only once"),
        (["?we=", "ppo"], "a key without a value"),
        ([HEAD, "?tag=x"], "'\\?tag=x' names no algorithm"),
        ([HEAD, ""], "'' names no algorithm"),
        ([HEAD, "ppo?tag"], "not KEY=VALUE"),
        ([HEAD, "ppo?tag=a&&tag=b"], "not KEY=VALUE"),
        ([HEAD, "ppo?tag="], "a key without a value"),
        ([HEAD, "ppo?=x"], "a value without a key"),
        ([HEAD, "ppo?cl=a&cl=b"], "has two legends"),
    ],
)
def test_mistakes_are_said(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_filter_set(texts)


# --- runs of an arm


def make_run(root: Path, name: str, about: dict[str, Any] | None = None, **config: Any) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    stored = {"recipe": config.get("exp_name", "imported"), "seed": config.get("seed", 0), "config": config}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "versions.json").write_text("{}")
    (folder / "about.json").write_text(json.dumps({"project": "cleanrl", "entity": "orlb", **(about or {})}))
    row = {"step": 1, "time": float(len(list(root.iterdir()))), "charts/episodic_return": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("duckdb")
    runs = {
        "p1": ({"tags": ["v1", "pr-7"], "user": "ann"}, {"exp_name": "ppo", "env_id": "Pong", "seed": 1}),
        "p2": ({"tags": ["pr-7", "x", "v1"], "user": "bob"}, {"exp_name": "ppo", "env_id": "Pong", "seed": 2}),
        "p3": ({"tags": ["v1"], "user": "ann"}, {"exp_name": "ppo", "env_id": "Pong", "seed": 3}),
        "h1": ({"tags": ["v1", "pr-7"], "user": "ann"}, {"exp_name": "ppo", "env_id": "Hopper", "seed": 1}),
        "s1": ({"tags": ["v1", "pr-7"], "user": "bob"}, {"exp_name": "sac", "env_id": "Pong", "seed": 1}),
        "other": (
            {"tags": ["v1", "pr-7"], "user": "ann", "project": "sb3"},
            {"algo": "ppo", "env": "PongNoFrameskip-v4", "seed": 1},
        ),
    }
    for name, (about, config) in runs.items():
        make_run(tmp_path / "runs", name, about, **config)
    with Store.open(tmp_path / "runs") as opened:
        yield opened


def found(store: Store, text: str, environment: str | None = "Pong", head: str = "?we=orlb&wpn=cleanrl") -> list[str]:
    filter_set = parse_filter_set([head, text])
    runs = select_runs(store, filter_set, filter_set.selectors[0], environment)
    return [record.directory.name for record in runs]


def test_several_tags_are_all_there_as_a_set(store: Store) -> None:
    """The reference's offline index asks one row for both tags and finds nothing."""
    assert found(store, "ppo?tag=v1&tag=pr-7") == ["p1", "p2"]
    assert found(store, "ppo?tag=pr-7&tag=v1&tag=x") == ["p2"]
    assert found(store, "ppo?tag=v1&tag=absent") == []


def test_the_user_is_one_more_condition(store: Store) -> None:
    """In the reference's offline index a user drops all conditions before it, project and environment among them."""
    assert found(store, "ppo?user=ann") == ["p1", "p3"]
    assert found(store, "ppo?user=ann&tag=pr-7") == ["p1"]
    assert found(store, "ppo?user=ann&user=bob") == ["p1", "p2", "p3"]
    assert found(store, "sac?user=ann") == []


def test_several_values_of_a_key_are_alternatives_and_keys_are_not(store: Store) -> None:
    assert found(store, "ppo?seed=1&seed=3") == ["p1", "p3"]
    assert found(store, "ppo?seed=1&seed=3&user=ann&user=bob&tag=pr-7") == ["p1"]
    assert found(store, "ppo?seed=1&seed=3&absent=1") == []


def test_environment_algorithm_project_and_entity(store: Store) -> None:
    assert found(store, "ppo", "Hopper") == ["h1"]
    assert found(store, "ppo", None) == ["h1", "p1", "p2", "p3"]
    assert found(store, "ppo", head="?we=other&wpn=cleanrl") == []
    assert found(store, "ppo", "PongNoFrameskip-v4", "?wpn=sb3&ceik=env&cen=algo") == ["other"]


def test_a_key_of_the_filter_set_cannot_be_given_again(store: Store) -> None:
    with pytest.raises(UserError, match="'env_id' is already given by the filter set, so the arm 'ppo"):
        found(store, "ppo?env_id=Pong")


def sets(*texts: list[str]) -> list[FilterSet]:
    return [parse_filter_set(text) for text in texts]


def panels(arms: list[Arm]) -> dict[str, dict[str, list[str]]]:
    return {arm.name: {p: [r.directory.name for r in runs] for p, runs in arm.runs.items()} for arm in arms}


def test_panels_are_the_environments_of_the_runs(store: Store) -> None:
    arms = arms_of_filters(store, sets(["?wpn=cleanrl", "ppo?tag=pr-7&cl=PPO", "sac?seed=1"]))
    assert panels(arms) == {
        "PPO": {"Hopper": ["h1"], "Pong": ["p1", "p2"]},
        "sac (seed=1)": {"Hopper": [], "Pong": ["s1"]},
    }


def test_row_i_of_every_list_is_one_panel(store: Store) -> None:
    both = sets(["?wpn=cleanrl", "ppo?cl=a"], ["?wpn=sb3&ceik=env&cen=algo&metric=eval", "ppo?cl=b"])
    arms = arms_of_filters(store, both, [["Pong", "Hopper"], ["PongNoFrameskip-v4", "HopperX"]])
    assert panels(arms) == {
        "a": {"Pong": ["p1", "p2", "p3"], "Hopper": ["h1"]},
        "b": {"Pong": ["other"], "Hopper": []},
    }
    assert [arm.metric for arm in arms] == ["charts/episodic_return", "eval"]
    assert list(arms_of_filters(store, both, [["Pong"]])[1].runs) == ["Pong"]  # one list for all


def test_lists_of_environments_that_do_not_match(store: Store) -> None:
    both = sets(["?wpn=cleanrl", "ppo"], ["?wpn=cleanrl", "sac"])
    with pytest.raises(UserError, match="one panel, but they have 1, 2 environments"):
        arms_of_filters(store, both, [["Pong"], ["Pong", "Hopper"]])
    with pytest.raises(UserError, match="2 filter sets need one list of environments or as many, not 3"):
        arms_of_filters(store, both, [["Pong"]] * 3)
    with pytest.raises(UserError, match="no run meets the filters"):
        arms_of_filters(store, sets(["?wpn=cleanrl", "dqn"]))
    with pytest.raises(UserError, match="two arms are called 'ppo': tell them apart with cl=LEGEND"):
        arms_of_filters(store, sets(["?wpn=cleanrl", "ppo", "ppo"]))


def test_zerozoos_own_runs_are_found_by_recipe_and_environment(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    make_run(tmp_path, "own", {"project": "zerozoo"}, environment="CartPole-v1", exp_name="x")
    with Store.open(tmp_path) as opened:
        head = "?wpn=zerozoo&ceik=environment&cen=recipe&xaxis=step"
        assert found(opened, "x", "CartPole-v1", head) == ["own"]


def test_the_default_metric_is_what_the_runs_are_judged_by(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    for name, metrics in {
        "a": {"episode/return": 1.0},
        "b": {"episode/return": 1.0, "evaluation/return": 2.0},
        "c": {"heldout/greedy_accuracy": 0.5, "reward": 1.0},
        "d": {"loss": 1.0},
    }.items():
        folder = make_run(tmp_path, name, {"project": "zerozoo"}, environment=f"world-{name}", exp_name=name)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "time": 1.0, **metrics}) + "\n")
    with Store.open(tmp_path) as opened:

        def metrics_of(*arms: str) -> list[str]:
            return [arm.metric for arm in arms_of_filters(opened, sets(["?wpn=zerozoo", *arms]))]

        assert metrics_of("a") == ["episode/return"]
        assert metrics_of("a", "b") == ["evaluation/return"] * 2  # one metric for all arms of a filter set
        assert metrics_of("c") == metrics_of("d") == ["heldout/greedy_accuracy"]


# --- arms of run directories


def records(root: Path, *configs: dict[str, Any]) -> list[Record]:
    return [read_record(make_run(root, f"r{number}", **config)) for number, config in enumerate(configs)]


def test_runs_that_differ_in_seed_and_environment_alone_are_one_arm(tmp_path: Path) -> None:
    base = {"exp_name": "ppo", "lr": 0.1, "env_id": "Pong", "seed": 1}
    found_runs = records(tmp_path, base, {**base, "seed": 2}, {**base, "env_id": "Hopper"}, {**base, "lr": 0.2})
    assert panels(arms_of_runs(found_runs, "m")) == {
        "lr=0.1": {"Pong": ["r0", "r1"], "Hopper": ["r2"]},
        "lr=0.2": {"Pong": ["r3"], "Hopper": []},
    }
    assert list(group_runs(found_runs[:3])) == ["ppo"]


def test_names_of_arms(tmp_path: Path) -> None:
    base = {"exp_name": "ppo", "env_id": "Pong"}
    two = records(tmp_path / "two", base, {**base, "exp_name": "sac", "tau": 0.5})
    assert list(group_runs(two)) == ["ppo, exp_name=ppo, tau=absent", "sac, exp_name=sac, tau=0.5"]
    many = records(tmp_path / "many", base, {**base, "a": 1, "b": 2, "c": 3, "d": 4})
    assert list(group_runs(many)) == ["r0", "r1"]


def test_runs_without_an_environment_share_a_panel(tmp_path: Path) -> None:
    (arm,) = arms_of_runs(records(tmp_path, {"lr": 1}, {"lr": 1, "seed": 4}), "m", "global_step")
    assert (list(arm.runs), arm.metric, arm.step_key) == (["all runs"], "m", "global_step")
