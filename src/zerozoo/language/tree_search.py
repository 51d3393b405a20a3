"""Search in the tree of partial solutions, guided by a learned value of prefixes: MCTS*, breadth first, best of n.

A node is a partial solution: the tokens of its first steps. The policy proposes next steps, a value model scores what
has come of them. The searches of many problems go on side by side, so that their proposals are one call of the sampler
and their scores one call of the value model. What is paid is the number of steps that were generated.

Source: ReST-MCTS*, arXiv 2406.03816, and its released code, from which the constants come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from zerozoo.language.logprobs import Sequences
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import Decoding, Sampler
from zerozoo.runs.errors import UserError

Score = Callable[[Sequences], torch.Tensor]  # prompts with partial solutions -> (N,) values


@dataclass(eq=False)
class Node:
    """A partial solution.

    Attributes:
        ids: tokens of all its steps.
        value: V, from the value model at first and from its children once it is on a path that was searched.
        visits: n.
        ended: no step can follow.
        expanded: its children have been proposed by an expansion, and not by a simulation alone.
        right: the verdict, where somebody has asked for it; ended nodes only.
    """

    ids: tuple[int, ...] = ()
    parent: Node | None = None
    value: float = 0.0
    visits: int = 0
    ended: bool = False
    expanded: bool = False
    right: bool = False
    children: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """Steps so far."""
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def closed(self) -> bool:
        """Nothing below is left to be searched."""
        return self.ended or (self.expanded and all(child.closed for child in self.children))

    def nodes(self) -> list[Node]:
        """The node and all below, parents first."""
        return [self, *(below for child in self.children for below in child.nodes())]


@dataclass(frozen=True)
class SearchSettings:
    """The constants of MCTS*, by the released evaluation script.

    Attributes:
        branch: steps proposed at an expansion.
        exploration: c of  V + c sqrt(2 ln n_parent / n).
        unvisited: what takes the place of the square root's term where n is 0.
        alpha: V of the best child becomes (1 - alpha) V + alpha (highest value met in its simulation).
        gate: an ended solution of at least this value ends the search.
        roll_branch, roll_steps: steps proposed at each step of a simulation, and its length.
        iterations: most rounds.
        budget: most steps generated for a problem.

    Raises UserError for numbers that no search could use.
    """

    branch: int = 3
    exploration: float = 0.4
    unvisited: float = 0.8
    alpha: float = 0.5
    gate: float = 0.9
    roll_branch: int = 1
    roll_steps: int = 2
    iterations: int = 100
    budget: int = 60

    def __post_init__(self) -> None:
        for name in ("branch", "roll_branch", "iterations", "budget"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name in ("exploration", "unvisited", "roll_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, but must not be negative.")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha is {self.alpha}, but must lie between 0 and 1.")


@dataclass(eq=False)
class Search:
    """The search of one problem: its tree, and the steps that were generated for it."""

    prompt: Sequence[int]
    root: Node = field(default_factory=Node)
    steps: int = 0
    found: Node | None = None

    def answer(self) -> Node | None:
        """The solution that passed the gate, else the ended one of the highest value; None where none has ended."""
        ended = [node for node in self.root.nodes() if node.ended]
        return self.found or max(ended, key=lambda node: node.value, default=None)


@dataclass
class StepWriter:
    """Proposes next steps and scores them.

    Attributes:
        score: values of partial solutions; cut to 0..1.
        decoding: of a whole solution: its temperature and stop strings, `max_new_tokens` is its longest length.
        step_tokens: longest step; one that is longer ends the solution.
        most_steps: a solution of so many steps has ended.
        generator: the random numbers.
        end: text that ends a step.
    """

    policy: LanguageModel
    sampler: Sampler
    score: Score
    decoding: Decoding
    step_tokens: int
    most_steps: int
    generator: torch.Generator
    end: str = "\n"

    def extend(self, searches: Sequence[Search], nodes: Sequence[Node], branch: int) -> list[list[Node]]:
        """`branch` proposals behind each node, each one step paid; the new children with their values.

        Steps that spell alike are one child, and children that the node had before are among those that are given.
        """
        if not nodes:
            return []
        starts = [[*search.prompt, *node.ids] for search, node in zip(searches, nodes, strict=True)]
        stops = (self.end, *self.decoding.stop_strings)
        decoding = Decoding(self.step_tokens, self.decoding.temperature, stop_strings=stops)
        drawn = self.sampler.sample(starts, branch, decoding, self.generator)
        lengths = drawn.lengths.tolist()
        proposed: list[list[Node]] = [[] for _ in nodes]
        for row, owner in enumerate(drawn.groups.tolist()):
            parent = nodes[owner]
            step = drawn.tokens[row, : lengths[row]].tolist()
            child = self._child(parent, tuple(step))
            if child not in proposed[owner]:
                proposed[owner].append(child)
        for search in searches:
            search.steps += branch
        self._score(searches, nodes, proposed)
        return proposed

    def _child(self, parent: Node, step: tuple[int, ...]) -> Node:
        ids = (*parent.ids, *step)
        known = next((child for child in parent.children if child.ids == ids), None)
        if known is not None:
            return known
        goes_on = self.policy.decode(step).endswith(self.end) and len(ids) < self.decoding.max_new_tokens
        child = Node(ids, parent, value=math.nan, ended=not goes_on or parent.depth + 1 >= self.most_steps)
        parent.children.append(child)
        return child

    def _score(self, searches: Sequence[Search], nodes: Sequence[Node], proposed: Sequence[Sequence[Node]]) -> None:
        new = [
            (search, child)
            for search, children in zip(searches, proposed, strict=True)
            for child in children
            if math.isnan(child.value)
        ]
        if new:
            sequences = Sequences([list(search.prompt) for search, _ in new], [list(child.ids) for _, child in new])
            for (_, child), value in zip(new, self.score(sequences).clamp(0, 1).tolist(), strict=True):
                child.value = value


def tree_search(searches: Sequence[Search], writer: StepWriter, settings: SearchSettings) -> None:
    """MCTS*: selection, expansion, greedy simulation and back-propagation until gate, budget or rounds end it.

    Two differences from the released code: simulated steps stay in the tree, for they have been paid for, and a node
    that can only repeat itself (ended, or with ended children alone) is not selected again.
    """
    for _ in range(settings.iterations):
        active = [one for one in searches if _goes_on(one, settings)]
        if not active:
            return
        leaves = [select(search.root, settings) for search in active]
        _expand(active, leaves, writer, settings)
        best = [max(leaf.children, key=lambda child: child.value) for leaf in leaves]
        highest = _simulate(active, best, writer, settings)
        for node, value in zip(best, highest, strict=True):
            back_propagate(node, value, settings.alpha)
        for search in active:
            passed = [node for node in search.root.nodes() if node.ended and node.value >= settings.gate]
            search.found = max(passed, key=lambda node: node.value, default=None)


def select(root: Node, settings: SearchSettings) -> Node:
    """From the root to a node that has not been expanded, along the highest V + c sqrt(2 ln n_parent / n)."""
    node = root
    while node.expanded:
        parent = node
        node = max(
            (child for child in parent.children if not child.closed),
            key=lambda child: child.value + _bonus(parent, child, settings),
        )
    return node


def _bonus(parent: Node, child: Node, settings: SearchSettings) -> float:
    if not child.visits:
        return settings.unvisited
    return settings.exploration * math.sqrt(2 * math.log(parent.visits) / child.visits)


def back_propagate(node: Node, highest: float, alpha: float) -> None:
    """V = (1 - alpha) V + alpha `highest` and n + 1 at the node; above it n + 1 and V = sum n_i V_i / sum n_i."""
    node.value = (1 - alpha) * node.value + alpha * highest
    node.visits += 1
    above = node.parent
    while above is not None:
        above.visits += 1
        visited = [child for child in above.children if child.visits]
        above.value = sum(child.visits * child.value for child in visited) / sum(child.visits for child in visited)
        above = above.parent


def _goes_on(search: Search, settings: SearchSettings) -> bool:
    return search.found is None and search.steps < settings.budget and not search.root.closed


def _expand(searches: Sequence[Search], leaves: Sequence[Node], writer: StepWriter, settings: SearchSettings) -> None:
    """All of them propose `branch` steps, but for those whose budget is nearly used up."""
    for branch in range(1, settings.branch + 1):
        share = [
            (search, leaf)
            for search, leaf in zip(searches, leaves, strict=True)
            if min(settings.branch, settings.budget - search.steps) == branch and not leaf.expanded
        ]
        writer.extend([search for search, _ in share], [leaf for _, leaf in share], branch)
        for _, leaf in share:
            leaf.expanded = True


def _simulate(
    searches: Sequence[Search], starts: Sequence[Node], writer: StepWriter, settings: SearchSettings
) -> list[float]:
    """From each node on, the best of the proposed steps again and again; the highest value met, its own included."""
    highest, places = [node.value for node in starts], list(starts)
    for _ in range(settings.roll_steps):
        open_places = [
            place
            for place, node in enumerate(places)
            if not node.ended and searches[place].steps + settings.roll_branch <= settings.budget
        ]
        found = writer.extend(
            [searches[place] for place in open_places], [places[place] for place in open_places], settings.roll_branch
        )
        for place, children in zip(open_places, found, strict=True):
            places[place] = max(children, key=lambda child: child.value)
            highest[place] = max(highest[place], places[place].value)
    return highest


def breadth_first(searches: Sequence[Search], writer: StepWriter, settings: SearchSettings) -> None:
    """Tree of thoughts: level by level, the best partial solutions go on, with an equal part of the budget a level."""
    share = settings.budget // writer.most_steps
    width = max(share // settings.branch, 1)
    frontier = [[search.root] for search in searches]
    for _ in range(writer.most_steps):
        by_branch: dict[int, list[tuple[Search, Node]]] = {}
        for search, nodes in zip(searches, frontier, strict=True):
            for node in nodes:
                by_branch.setdefault(max(share // len(nodes), 1), []).append((search, node))
        for branch, pairs in sorted(by_branch.items()):
            # A search may stand here several times; its steps are counted for each node.
            writer.extend([search for search, _ in pairs], [node for _, node in pairs], branch)
        for place, nodes in enumerate(frontier):
            children = [child for node in nodes for child in node.children if not child.ended]
            frontier[place] = sorted(children, key=lambda child: -child.value)[:width]


def best_of_n(searches: Sequence[Search], writer: StepWriter, settings: SearchSettings) -> None:
    """Whole solutions one beside another, as many as the budget has steps for; the value of the whole ranks them.

    A solution that the budget cuts off stays unfinished.
    """
    most = -(-settings.budget // writer.most_steps) * writer.most_steps
    for _ in range(most):
        places = [search for search in searches if search.steps < settings.budget]
        if not places:
            return
        nodes = [search.root for search in places]
        while places:
            found = writer.extend(places, nodes, 1)
            pairs = [
                (search, children[0])
                for search, children in zip(places, found, strict=True)
                if not children[0].ended and search.steps < settings.budget
            ]
            places, nodes = [search for search, _ in pairs], [node for _, node in pairs]


SEARCHES: dict[str, Callable[[Sequence[Search], StepWriter, SearchSettings], None]] = {
    "mcts": tree_search,
    "tree-of-thoughts": breadth_first,
    "best-of-n": best_of_n,
}
