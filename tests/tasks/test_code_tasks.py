from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import pytest

from zerozoo.runs.errors import UserError
from zerozoo.tasks.code import LEVELS, TESTS, code
from zerozoo.tasks.task import make_verifier, question_key


def function_of(answer: str):
    """The reference solution, from its text alone."""
    namespace: dict = {}
    exec(answer, namespace)  # the task set's own text
    return namespace["f"]


# All constants of the five families of a level, less those of a function that is there already: "x * x if x > 1 else 4"
# is the same as with 2 for 1 (and with -3 and -2), a sum of what is above -1 the same as above 0.
COUNTS = {
    "numbers": 6 * 12 + 9 * 3 + 19 + 9 * 12 + 13 * 6 - 2,
    "lists": 22 + 8 + 6 * 12 + 22 * 3 + 4 * 6 - 1,
    "strings": 7 * 5 + 5 * 5 + 5 * 5 + 6 + 5 * 5,
}


@pytest.mark.parametrize(("level", "count"), COUNTS.items())
def test_counts_and_disjointness(level, count):
    tasks = code(level, seed=3)
    everything = (*tasks.train, *tasks.heldout)
    assert len(everything) == count
    assert len(tasks.heldout) == len(everything) // 4
    assert len({question_key(one.question) for one in everything}) == len(everything)
    assert len({one.id for one in everything}) == len(everything)
    assert len({one.answer for one in everything}) == len(everything)
    assert {one.id.split("/")[2] for one in everything} == {family.name for family in LEVELS[level]}


@pytest.mark.parametrize("level", LEVELS)
def test_the_answer_passes_the_tests_and_the_example(level):
    tasks = code(level)
    for one in (*tasks.train, *tasks.heldout):
        function, calls = function_of(one.answer), one.metadata["calls"]
        assert len(calls) == len(one.metadata["expected"]) == TESTS
        assert [function(*call) for call in calls] == one.metadata["expected"]
        shown, value = re.search(r"For example, f\((.*)\) is (.*)\.$", one.question).groups()
        assert repr(function(eval(shown))) == value
        assert [eval(shown)] not in calls  # the example is not a test
        assert len({repr(call) for call in calls}) == TESTS
        assert (one.level, one.source) == (level, "code")


@pytest.mark.parametrize("level", LEVELS)
def test_no_constant_passes_more_than_half(level):
    for one in code(level).train:
        values = [repr(value) for value in one.metadata["expected"]]
        assert max(map(values.count, values)) <= TESTS // 2


@pytest.mark.parametrize("level", LEVELS)
def test_heldout_functions_differ_from_all_training_functions(level):
    tasks = code(level)
    rng = random.Random(77)
    probes = [LEVELS[level][0].draw(rng) for _ in range(200)]

    def behaviours(part):
        return {repr([function_of(one.answer)(probe) for probe in probes]) for one in part}

    assert len(behaviours(tasks.heldout)) == len(tasks.heldout)
    assert not behaviours(tasks.heldout) & behaviours(tasks.train)


def test_the_families_of_a_level_take_the_same_inputs():
    """Otherwise equal functions could not be told by their values."""
    for families in LEVELS.values():
        assert len({family.draw for family in families}) == 1


def test_one_problem_by_hand():
    one = next(one for one in (*code().train, *code().heldout) if one.id == "code/numbers/linear/3-7")
    assert one.question.startswith("Write the Python function f(x) that returns 3 times the integer x, plus 7. For ex")
    assert one.answer == "def f(x):\n    return 3 * x + 7"
    assert one.metadata["expected"] == [3 * call[0] + 7 for call in one.metadata["calls"]]


def test_recommended_settings():
    tasks = code("lists")
    assert (tasks.name, tasks.verifier, tasks.stop) == ("code:lists", "code", ("```",))
    assert tasks.template.endswith("```python\n")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_verifier_of_the_set_accepts_its_answers():
    tasks = code("strings")
    answers = [f"{one.answer}\n```\nand so on" for one in tasks.heldout[:3]]
    with make_verifier(tasks) as verifier:
        results = verifier.verify(tasks.heldout[:3], [*answers[:2], answers[0]])
    assert [one.verdict.value for one in results] == ["right", "right", "wrong"]


def test_split_depends_on_its_seed_only():
    assert code(seed=3) == code(seed=3)
    assert code(seed=3).heldout != code(seed=4).heldout
    assert sorted(one.id for part in (code(seed=3), code(seed=4)) for one in part.heldout + part.train) == sorted(
        2 * [one.id for one in code().heldout + code().train]
    )


def test_problems_are_the_same_in_another_process():
    source = "from zerozoo.tasks.code import code; print(repr(code('strings', 5).heldout))"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.strip() == repr(code("strings", 5).heldout)


def test_errors():
    assert len(code(heldout_size=10).heldout) == 10
    with pytest.raises(UserError, match="numbers, lists, strings"):
        code("classes")
    for size in (0, -1, 10_000):
        with pytest.raises(UserError, match="between 1 and"):
            code(heldout_size=size)
