"""MCTS* and its rivals on scripted policies and values: formulas by hand, budgets, and targets on hand-made trees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from zerozoo.language.logprobs import Sequences
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.language.step_values import StepSplitter
from zerozoo.language.tree_search import (
    SEARCHES,
    Node,
    Search,
    SearchSettings,
    StepWriter,
    back_propagate,
    best_of_n,
    breadth_first,
    select,
    tree_search,
)
from zerozoo.language.value_targets import (
    distances,
    judge_leaves,
    plant,
    policy_rows,
    quality,
    value_rows,
    value_targets,
)
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task

TASK = Task("t", "q", "ab", "test")


class Letters:
    """A token a character."""

    max_context = 100

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


class Cycle:
    """Proposes the letters a, b, c, ... in turn behind every prefix, each a step; the last level has no newline."""

    def __init__(self, letters: str = "abc", levels: int = 3) -> None:
        self.letters, self.levels, self.asked, self.next = letters, levels, [], {}  # type: ignore[var-annotated]

    def sample(self, prompts: Any, samples: int, decoding: Decoding, generator: torch.Generator) -> Samples:
        texts = ["".join(map(chr, prompt)) for prompt in prompts]
        self.asked.append((texts, samples, decoding))
        rows = []
        for text in texts:
            for _ in range(samples):
                turn = self.next[text] = self.next.get(text, -1) + 1
                letter = self.letters[turn % len(self.letters)]
                rows.append(letter if text.count("\n") == self.levels - 1 else letter + "\n")
        longest = max(map(len, rows))
        return Samples(
            tokens=torch.tensor([[*map(ord, row), *[0] * (longest - len(row))] for row in rows]),
            lengths=torch.tensor([len(row) for row in rows]),
            logprobs=torch.zeros(len(rows), longest),
            stopped=torch.ones(len(rows), dtype=torch.bool),
            groups=torch.arange(len(texts)).repeat_interleave(samples),
            texts=rows,
        )


def text(node: Node) -> str:
    return "".join(map(chr, node.ids)).replace("\n", "")


def writer(value: Callable[[str], float], **changes: Any) -> StepWriter:
    def score(sequences: Sequences) -> torch.Tensor:
        return torch.tensor([value("".join(map(chr, ids)).replace("\n", "")) for ids in sequences.responses])

    sampler = changes.pop("sampler", Cycle())
    return StepWriter(Letters(), sampler, score, Decoding(40), 8, 3, torch.Generator(), **changes)  # type: ignore[arg-type]


def toward(goal: str) -> Callable[[str], float]:
    """The share of the goal that a partial solution begins with, a tenth of that once it has left it."""
    return lambda one: len(one) / len(goal) * (1 if goal.startswith(one) else 0.1)


def prompt() -> Search:
    return Search([ord("q")])


# --- the formulas


def test_selection_by_hand():
    """V + c sqrt(2 ln n / n_child) = 0.5 + 0.4 sqrt(2 ln 4 / 3), 0.6 + 0.4 sqrt(2 ln 4), and 0.1 + 0.8."""
    settings = SearchSettings()
    root = Node(visits=4, expanded=True)
    root.children = [Node((place,), root, value, visits) for place, value, visits in ((1, 0.5, 3), (2, 0.6, 1))]
    assert select(root, settings) is root.children[1]
    root.children.append(Node((3,), root, 0.1, 0))
    assert 0.6 + 0.4 * math.sqrt(2 * math.log(4)) > 0.9
    assert select(root, settings) is root.children[1]
    assert select(root, SearchSettings(unvisited=2.0)) is root.children[2]
    root.children[1].ended = True
    assert select(root, settings) is root.children[2]  # 0.1 + 0.8 against 0.5 + 0.385
    assert select(root, SearchSettings(unvisited=0.7)) is root.children[0]


def test_back_propagation_by_hand():
    root = Node(visits=3)
    left, right = (Node((place,), root, value, visits) for place, value, visits in ((1, 0.2, 2), (2, 0.6, 1)))
    root.children = [left, right, Node((3,), root, 0.9, 0)]
    leaf = Node((1, 1), left, 0.4)
    left.children = [leaf]
    back_propagate(leaf, highest=0.8, alpha=0.5)
    assert (leaf.value, leaf.visits) == (pytest.approx(0.6), 1)
    assert (left.value, left.visits) == (pytest.approx(0.6), 3)
    assert root.value == pytest.approx((3 * 0.6 + 1 * 0.6) / 4)  # the child without visits does not count
    assert root.visits == 4


def test_settings_that_no_search_can_use():
    for changes, sentence in (
        ({"branch": 0}, "branch is 0"),
        ({"budget": 0}, "budget is 0"),
        ({"alpha": 2.0}, "alpha is 2.0"),
        ({"exploration": math.nan}, "exploration is nan"),
    ):
        with pytest.raises(UserError, match=sentence):
            SearchSettings(**changes)


# --- searches


def test_a_guide_that_knows_leads_straight_to_the_goal():
    """One expansion of three, two simulated steps; b is the second proposal everywhere."""
    search = prompt()
    tree_search([search], writer(toward("bbb")), SearchSettings(roll_branch=3))
    answer = search.answer()
    assert answer is not None
    assert (text(answer), answer.value) == ("bbb", 1.0)
    assert search.found is answer
    assert search.steps == 9


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("budget", [3, 10, 25])
def test_no_search_pays_more_than_its_budget(method, budget):
    searches = [prompt(), prompt()]
    SEARCHES[method](searches, writer(lambda one: 0.1), SearchSettings(budget=budget))
    assert all(0 < search.steps <= budget for search in searches)
    for search in searches:
        for node in search.root.nodes()[1:]:
            assert node in node.parent.children
            assert node.ids[: len(node.parent.ids)] == node.parent.ids
            assert node.ended == (node.depth == 3)


def test_equal_steps_are_one_child_and_keep_their_value():
    sampler = Cycle("aab")
    search, one = prompt(), writer(lambda spelled: len(spelled) / 10, sampler=sampler)
    (children,) = one.extend([search], [search.root], 3)
    assert [text(child) for child in children] == ["a", "b"]
    children[0].value = 0.7
    (again,) = one.extend([search], [search.root], 2)
    assert again == [children[0]]
    assert children[0].value == 0.7
    assert search.steps == 5
    assert sampler.asked[0][2].stop_strings == ("\n",)


def test_searches_side_by_side_are_one_call():
    sampler = Cycle()
    searches = [prompt(), prompt()]
    tree_search(searches, writer(lambda one: 0.1, sampler=sampler), SearchSettings(iterations=1, roll_steps=1))
    assert [(len(texts), samples) for texts, samples, _ in sampler.asked] == [(2, 3), (2, 1)]


def test_a_tree_without_anything_left_ends_the_search():
    search = prompt()
    tree_search([search], writer(lambda one: 0.1, sampler=Cycle("a")), SearchSettings(budget=60))
    assert search.root.closed
    assert search.steps < 60


def test_breadth_first_keeps_the_best_of_each_level():
    sampler = Cycle()
    search = prompt()
    breadth_first([search], writer(toward("cab"), sampler=sampler), SearchSettings(budget=27))
    assert [(len(texts), samples) for texts, samples, _ in sampler.asked] == [(1, 9), (3, 3), (3, 3)]
    assert search.steps == 27
    assert text(search.answer()) == "cab"


def test_best_of_n_writes_whole_solutions():

    def alike(one: str) -> float:
        return one.count("b") / 3

    search = prompt()
    best_of_n([search], writer(alike), SearchSettings(budget=9))
    ended = [text(node) for node in search.root.nodes() if node.ended]
    assert ended == ["aaa", "baa", "caa"]
    assert text(search.answer()) == "baa"  # nothing better was written
    short = prompt()
    best_of_n([short], writer(alike), SearchSettings(budget=5))
    assert [text(node) for node in short.root.nodes() if not node.children] == ["aaa", "ba"]
    assert text(short.answer()) == "aaa"


# --- targets


def tree() -> tuple[Node, dict[str, Node]]:
    """a - ab (right); a - aX - aXY (wrong); c - cd - cde (right); e (wrong)."""
    root, named = Node(), {}
    for spelled in ("ab", "aXY", "cde", "e"):
        last = plant(root, [(ord(letter),) for letter in spelled])
        last.right = spelled in ("ab", "cde")
    for node in root.nodes()[1:]:
        named["".join(map(chr, node.ids))] = node
    return root, named


def test_the_quality_rises_by_equal_steps_to_one():
    value, seen = 0.0, []
    for distance in (2, 1, 0):
        value = quality(value, distance, wrong=False)
        seen.append(value)
    assert seen == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert quality(0.5, 1, wrong=True) == pytest.approx(0.25)
    assert quality(0.1, 0, wrong=True) == 0.0  # never below
    with pytest.raises(ValueError, match="must not be negative"):
        quality(0.5, -1, wrong=False)


def test_distances_and_targets_of_a_tree_by_hand():
    root, named = tree()
    found = distances(root)
    assert {name: found.get(id(node)) for name, node in named.items()} == {
        "a": 1, "ab": 0, "aX": None, "aXY": None, "c": 2, "cd": 1, "cde": 0, "e": None,
    }  # fmt: skip
    assert found[id(root)] == 2
    targets = {"".join(map(chr, node.ids)): value for node, value in value_targets(root)}
    assert targets == {
        "a": pytest.approx(1 / 2),
        "ab": 1.0,
        "aX": pytest.approx(1 / 2 - 1 / 2 / 2),  # m of a, which is 1
        "aXY": pytest.approx(0.0),  # 1/4 - 3/4 / 2 is below 0
        "c": pytest.approx(1 / 3),
        "cd": pytest.approx(2 / 3),
        "cde": 1.0,
        "e": 0.0,  # 0 - 1 / 3
    }


def test_an_unsolved_tree_teaches_no_values():
    root = Node()
    plant(root, [(1,), (2,)])
    assert value_targets(root) == []


def test_planting_doubles_nothing_and_ends_where_it_ends():
    root, named = tree()
    before = len(root.nodes())
    assert plant(root, [(ord("c"),), (ord("d"),)]) is named["cd"]
    assert len(root.nodes()) == before
    assert named["cd"].ended
    assert not named["c"].ended


def test_rows_of_policy_and_value():
    class Judge:
        def verify(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verification]:
            verdicts = [Verdict.RIGHT if one == problem.answer else Verdict.WRONG
                        for problem, one in zip(problems, responses, strict=True)]  # fmt: skip
            return [Verification(verdict, "", 0.0, False, 0.0) for verdict in verdicts]

        def close(self) -> None: ...

    search = Search([7])
    for spelled, value in (("ab", 0.3), ("ac", 0.9)):
        plant(search.root, [(ord(letter),) for letter in spelled]).value = value
    judge_leaves([search], [TASK], Judge(), StepSplitter(Letters()))  # type: ignore[arg-type]
    assert [text(node) for node in search.root.nodes() if node.right] == ["ab"]
    assert policy_rows([search], [TASK], 1) == [{"task": "t", "prompt": [7], "response": [97, 98]}]
    rows = {tuple(row["response"]): (row["places"], row["labels"]) for row in value_rows([search], [TASK])}
    assert rows == {(97,): ([0], [0.5]), (97, 98): ([1], [1.0]), (97, 99): ([1], [0.25])}
    search.root.children[0].children[1].right = True
    best = policy_rows([search], [TASK], 1)
    assert [row["response"] for row in best] == [[97, 99]]  # the higher value
    assert len(policy_rows([search], [TASK], 0)) == 2
