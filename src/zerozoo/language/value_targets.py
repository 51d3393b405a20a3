"""From solved trees to what is learned: values of partial solutions without step labels, and right solutions.

    m_k   least number of further steps to a right answer: known in the tree, once its leaves are judged
    r_k   0 where a right answer is below, 1 where none is; m_k is then that of the nearest node above with one
    w_k = (1 - v_(k-1)) / (m_k + 1) * (1 - 2 r_k),    v_k = max(v_(k-1) + w_k, 0),    v_0 = 0

So v rises to exactly 1 at a right answer, by equal steps on a shortest way, and falls where the way was left.

Source: ReST-MCTS*, arXiv 2406.03816, sections 3.1 and 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

from zerozoo.language.example_files import Row
from zerozoo.language.step_values import StepSplitter
from zerozoo.language.tree_search import Node, Search
from zerozoo.rewards.verifier import Verdict, Verifier
from zerozoo.tasks.task import Task


def quality(before: float, distance: int, wrong: bool) -> float:
    """v_k from v_(k-1) = `before`, m_k = `distance` and r_k = `wrong`. Raises ValueError for a negative distance."""
    if distance < 0:
        raise ValueError(f"the distance {distance} must not be negative")
    weight = (1 - before) / (distance + 1)
    return max(before - weight if wrong else before + weight, 0.0)


def distances(root: Node) -> dict[int, int]:
    """id(node) -> m of the nodes below which (or at which) there is a right answer."""
    found: dict[int, int] = {}
    for node in reversed(root.nodes()):  # children first
        below = [found[id(child)] + 1 for child in node.children if id(child) in found]
        if node.right:
            found[id(node)] = 0
        elif below:
            found[id(node)] = min(below)
    return found


def value_targets(root: Node) -> list[tuple[Node, float]]:
    """Every node but the root with its v; nothing for a tree without a right answer, for it has no distances."""
    known = distances(root)
    if id(root) not in known:
        return []
    targets: list[tuple[Node, float]] = []
    above: list[tuple[Node, float, int]] = [(root, 0.0, known[id(root)])]  # with the m that holds below it
    while above:
        parent, before, inherited = above.pop()
        for child in parent.children:
            distance = known.get(id(child), inherited)
            value = quality(before, distance, wrong=id(child) not in known)
            targets.append((child, value))
            above.append((child, value, distance))
    return targets


def judge_leaves(searches: Sequence[Search], tasks: Sequence[Task], verifier: Verifier, splitter: StepSplitter) -> None:
    """Ask for the verdict of every ended node."""
    ended = [(task, node) for search, task in zip(searches, tasks, strict=True) for node in search.root.nodes()]
    ended = [(task, node) for task, node in ended if node.ended]
    verdicts = verifier.verify([task for task, _ in ended], [splitter.text(node.ids) for _, node in ended])
    for (_, node), judged in zip(ended, verdicts, strict=True):
        node.right = judged.verdict is Verdict.RIGHT


def plant(root: Node, spans: Sequence[tuple[int, ...]]) -> Node:
    """Put a whole solution into a tree, step by step, and give its last node; steps that are there are not doubled."""
    node = root
    for place, step in enumerate(spans, start=1):
        ids = (*node.ids, *step)
        child = next((child for child in node.children if child.ids == ids), None)
        if child is None:
            child = Node(ids, node)
            node.children.append(child)
        child.ended = child.ended or place == len(spans)
        node = child
    return node


def value_rows(searches: Sequence[Search], tasks: Sequence[Task]) -> list[Row]:
    """Rows for `process_rewards.read_labelled`: every partial solution with its v at its last token."""
    return [
        {
            "task": task.id,
            "prompt": list(search.prompt),
            "response": list(node.ids),
            "places": [len(node.ids) - 1],
            "labels": [value],
        }
        for search, task in zip(searches, tasks, strict=True)
        for node, value in value_targets(search.root)
    ]


def policy_rows(searches: Sequence[Search], tasks: Sequence[Task], most: int) -> list[Row]:
    """Rows {"prompt", "response"} of right solutions, of each problem the `most` of the highest value; 0: all."""
    rows: list[Row] = []
    for search, task in zip(searches, tasks, strict=True):
        right = sorted((node for node in search.root.nodes() if node.right), key=lambda node: -node.value)
        for node in right[: most or None]:
            rows.append({"task": task.id, "prompt": list(search.prompt), "response": list(node.ids)})
    return rows
