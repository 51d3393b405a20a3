from __future__ import annotations

import ast
import sys

import pytest

from zerozoo.rewards.sandbox import Limits, Sandbox, Status
from zerozoo.rewards.unit_tests import (
    NEEDED,
    QUALITIES,
    SYNTAX,
    WEIGHTS,
    analyse,
    combined_reward,
    execute,
    first_unit_test,
    has_constant_assertion,
    ignores_result,
    is_sound,
    mutants,
    parse_unit_test,
    quality_reward,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

GOOD = """
def test_clamp_keeps_values_inside():
    # the borders belong to it
    assert clamp(3, 1, 5) == 3
    assert clamp(0, 1, 5) == 1
"""


def body(*lines, name="test_it"):
    return f"def {name}():\n" + "".join(f"    {line}\n" for line in lines)


def quality(name, source, focal="clamp"):
    return analyse(source, focal)[name]


# --- static qualities ---


def test_a_good_test_has_all_qualities():
    qualities = analyse(GOOD, "clamp")
    assert qualities == dict.fromkeys([SYNTAX, *QUALITIES], True)
    assert is_sound(qualities)
    assert combined_reward(GOOD, "clamp") == 1.0


@pytest.mark.parametrize(
    "source",
    ["", "def test_f(:", "x = 1", "def check():\n    assert f(1)", "assert f(1)", "def test_f():", "\0", "a" * 30_000],
)
def test_what_is_no_test(source):
    assert analyse(source, "f") == dict.fromkeys([SYNTAX, *QUALITIES], False)
    assert quality_reward(source, "f", "comment") == combined_reward(source, "f") == -1.0


def test_deep_texts_are_no_test():
    for source in (
        body("assert f(" + "(" * 5000),
        body("assert f(" + "1+" * 3000 + "1)"),
        "def test(): x=" + "-" * 9000 + "1",
    ):
        assert analyse(source, "f")[SYNTAX] in (True, False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("assert clamp(1, 2, 3) == 2", True),
        ("assert x", True),
        ("assert True", False),
        ("assert 1 == 1, 'message'", False),
        ("assert 'a'.upper() == 'A'", False),
        ("self.assertEqual(clamp(1, 2, 3), 2)", True),
        ("self.assertTrue(True)", False),
        ("assert_close(x, 1)", True),
        ("clamp(1, 2, 3)", False),
        ("# assert clamp(1, 2, 3) == 2", False),
        ("'assert clamp(1, 2, 3) == 2'", False),
        ("pass", False),
    ],
)
def test_assertions(line, expected):
    assert quality("assertion", body(line, "pass")) is expected


def test_raises_is_an_assertion():
    assert quality("assertion", body("with pytest.raises(ValueError):", "    clamp(1, 3, 2)"))
    assert not quality("assertion", body("with pytest.raises(ValueError):", "    pass"))
    assert not quality("assertion", body("with open('x') as file:", "    clamp(1, 3, 2)"))


def test_hollow_tests_are_counted_apart():
    assert has_constant_assertion(parse_unit_test(body("assert clamp(1, 2, 3)", "assert True"), "clamp"))
    assert not has_constant_assertion(parse_unit_test(GOOD, "clamp"))
    assert ignores_result(parse_unit_test(body("clamp(1, 2, 3)", "assert x"), "clamp"))
    assert not ignores_result(parse_unit_test(body("y = clamp(1, 2, 3)", "print(y)"), "clamp"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = clamp(1, 2, 3)", True),
        ("assert module.clamp(1, 2, 3) == 2", True),
        ("print([clamp(n, 0, 1) for n in range(3)])", True),
        ("# clamp(1, 2, 3)", False),
        ("x = 'clamp(1, 2, 3)'", False),
        ("x = clamp", False),
        ("clamped(1, 2, 3)", False),
    ],
)
def test_focal_calls(line, expected):
    assert quality("focal-call", body(line, "pass")) is expected


def test_comments():
    assert quality("comment", body("pass  # why"))
    assert quality("comment", body('"""Says why."""'))
    assert not quality("comment", body("pass  # ---"))
    assert not quality("comment", body("x = '# no comment'"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_clamp_below_range", True),
        ("test_returns_lower_bound", True),
        ("test_clamp", False),
        ("test_clamp_2", False),
        ("test", False),
        ("test1", False),
        ("test_a_b_c", False),
    ],
)
def test_names(name, expected):
    assert quality("descriptive-name", body("pass", name=name)) is expected


def test_a_name_made_of_the_focal_name_says_nothing_more():
    assert not quality("descriptive-name", body("pass", name="test_count_letters"), focal="count_letters")
    assert quality("descriptive-name", body("pass", name="test_count_letters_empty"), focal="count_letters")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["assert f(1) == 2", "assert f(1) == 2"], False),
        (["assert f(1) == 2", "assert  f( 1 )==2  # again"], False),
        (["assert f(1) == 2", "assert f(2) == 2", "assert f(1) == 2"], True),
        (["x.add(1)", "x.add(1)"], True),
        (["self.assertEqual(f(1), 2)", "self.assertEqual(f(1), 2)"], False),
        (["with a:", "    assert f(1)", "    assert f(1)"], False),
        (["assert f(1)", "with a:", "    assert f(1)"], True),
    ],
)
def test_duplicates(lines, expected):
    assert quality("no-duplicate-assertion", body(*lines)) is expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["if x:", "    pass"], False),
        (["for x in y:", "    pass"], False),
        (["while x:", "    pass"], False),
        (["try:", "    pass", "except E:", "    pass"], False),
        (["match x:", "    case _:", "        pass"], False),
        (["x = [a for a in b if a]", "with a:", "    pass"], True),
    ],
)
def test_conditionals(lines, expected):
    assert quality("no-conditional", body(*lines)) is expected


def test_rewards_by_hand():
    source = body("x = clamp(1, 2, 3)", name="test_clamp")  # a call; no assertion, comment or descriptive name
    assert {name: quality_reward(source, "clamp", name) for name in (SYNTAX, *QUALITIES)} == {
        SYNTAX: 1.0,
        "assertion": 0.0,
        "focal-call": 1.0,
        "comment": 0.0,
        "descriptive-name": 0.0,
        "no-duplicate-assertion": 1.0,
        "no-conditional": 1.0,
    }
    assert combined_reward(source, "clamp") == pytest.approx(3 / 5)
    assert combined_reward(source, "clamp", {"assertion": 2.0, "focal-call": 1.0}) == pytest.approx(1 / 3)
    assert not is_sound(analyse(source, "clamp"))
    assert set(NEEDED) - {SYNTAX} <= set(WEIGHTS) == set(QUALITIES)
    with pytest.raises(KeyError):
        quality_reward(source, "clamp", "beauty")


def test_a_second_test_is_cut_off():
    assert first_unit_test(GOOD + "\n" + body("if x:", "    pass")) == GOOD.rstrip() + "\n"
    assert first_unit_test(GOOD) == GOOD
    assert first_unit_test("no test") == "no test"


# --- mutants and execution ---

CLAMP = "def clamp(x, low, high):\n    return min(max(x, low), high)\n"
STEP = 'def step(x):\n    """Doc."""\n    if x > 3:\n        return x + 1\n    return 0\n'


def test_mutants_by_hand():
    changed = {text.replace("\n", ";") for text in mutants(STEP, most=99)}
    head = 'def step(x):;    """Doc.""";    '
    assert changed == {
        head + "if not x > 3:;        return x + 1;    return 0",
        head + "if x >= 3:;        return x + 1;    return 0",
        head + "if x > 4:;        return x + 1;    return 0",
        head + "if x > 3:;        return x - 1;    return 0",
        head + "if x > 3:;        return x + 2;    return 0",
        head + "if x > 3:;        return None;    return 0",
        head + "if x > 3:;        return x + 1;    return 1",
        head + "if x > 3:;        return x + 1;    return None",
    }
    assert set(mutants(CLAMP)) == {
        CLAMP.rstrip().replace("min(", "max(", 1),
        CLAMP.rstrip().replace("max(", "min(", 1),
        CLAMP.rstrip().replace("min(max(x, low), high)", "None"),
    }


def test_mutants_are_few_distinct_and_always_the_same():
    few = mutants(STEP, most=4)
    assert len(set(few)) == 4
    assert set(few) <= set(mutants(STEP, most=99))
    assert few == mutants(STEP, most=4)
    assert mutants("x = y", 4) == []
    for text in mutants(STEP, 99):
        ast.parse(text)
    with pytest.raises(ValueError, match="does not parse"):
        mutants("def f(:")


@linux
def test_execution():
    sandbox = Sandbox(Limits(seconds=120.0, cpu_seconds=2))
    thorough = GOOD + "    assert clamp(9, 1, 5) == 5\n"
    cases = [
        (CLAMP, thorough),  # finds max for min, min for max and None
        (CLAMP, body("assert clamp(3, 3, 3) == 3")),  # finds None only
        (CLAMP, body("assert True")),
        (CLAMP, body("assert clamp(3, 1, 5) == 4")),
        (CLAMP, body("import pytest")),
        (CLAMP, body("import os", "os._exit(0)")),  # to end early earns nothing either
        (CLAMP, "no test"),
        (CLAMP, body("while True: pass")),
    ]
    results = execute(sandbox, cases)
    assert [(one.passes, one.killed, one.mutants) for one in results] == [
        (True, 3, 3),
        (True, 1, 3),
        (True, 0, 3),
        (False, 0, 0),
        (False, 0, 0),
        (True, 0, 3),
        (False, 0, 0),
        (False, 0, 0),
    ]
    assert [one.mutation_score for one in results] == pytest.approx([1, 1 / 3, 0, 0, 0, 0, 0, 0])
    assert [one.status for one in results[3:]] == [Status.FAILED, Status.FAILED, Status.OK, None, Status.TIMEOUT]
    assert execute(sandbox, []) == []


@linux
def test_an_endless_mutant_is_found():
    countdown = "def countdown(n):\n    while n > 0:\n        n = n - 1\n    return n\n"
    cases = [(countdown, body("assert countdown(3) == 0"))]
    assert countdown.replace("n - 1", "n + 1").rstrip() in mutants(countdown, 99)
    (result,) = execute(Sandbox(Limits(seconds=120.0, cpu_seconds=1)), cases, most_mutants=99)
    assert (result.killed, result.mutants) == (6, 6)
