from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.rewards.code import CodeVerifier, equal, extract_program
from zerozoo.rewards.code_runner import decode, encode
from zerozoo.rewards.sandbox import Limits, Sandbox
from zerozoo.rewards.verifier import Verdict

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@dataclass(frozen=True)
class Gold:
    answer: str = ""
    metadata: dict = field(default_factory=dict)


DOUBLE = Gold(metadata={"function": "f", "calls": [[1], [2], [-3], [10]], "expected": [2, 4, -6, 20]})


@pytest.fixture(scope="module")
def verifier():
    with CodeVerifier(Sandbox(Limits(seconds=120.0, cpu_seconds=30))) as shared:
        yield shared


def verify(verifier, *responses, gold=DOUBLE):
    return verifier.verify([gold] * len(responses), list(responses))


# --- verdicts ---


@linux
@pytest.mark.parametrize(
    ("response", "verdict", "score"),
    [
        ("def f(x):\n    return 2 * x", "right", 1.0),
        ("Sure!\n```python\ndef f(x):\n    return x + x\n```\nThis doubles x.", "right", 1.0),
        ("import math\n\ndef f(x):\n    return math.prod([2, x])\n\nAnd so it is done.", "right", 1.0),
        ("def f(x):\n    return 2.0 * x", "right", 1.0),
        ("def f(x):\n    return abs(2 * x)", "wrong", 0.75),
        ("def f(x):\n    return 2 * x if x > 1 else None", "wrong", 0.5),
        ("def f(x):\n    return [1, 2][x] * 4", "wrong", 0.0),  # 8, an error, an error, an error
        ("def f(x):\n    return 4", "wrong", 0.25),
        ("def f(x):\n    return str(2 * x)", "wrong", 0.0),
        ("def g(x):\n    return 2 * x", "wrong", 0.0),
        ("def f(x)\n    return 2 * x", "wrong", 0.0),
        ("I do not know.", "wrong", 0.0),
        ("", "wrong", 0.0),
        ("def f(x):\n    print('noise' * 10000)\n    return 2 * x", "right", 1.0),
        ("import sys\nsys.exit(0)\ndef f(x):\n    return 2 * x", "wrong", 0.0),
        ("def f(x):\n    if x < 0: raise SystemExit\n    return 2 * x", "wrong", 0.5),
        ("```\ndef f(x):\n    return 2 * x\nimport os\nos._exit(0)\n```", "wrong", 0.0),
        ("def f(x):\n    return f(x)", "wrong", 0.0),
    ],
)
def test_verdicts(verifier, response, verdict, score):
    result = verify(verifier, response)[0]
    assert (result.verdict.value, result.score) == (verdict, score)


@linux
def test_a_program_that_hangs_keeps_what_it_passed():
    with CodeVerifier(Sandbox(Limits(seconds=120.0, cpu_seconds=1))) as verifier:
        slow = "def f(x):\n    while x == -3: pass\n    return 2 * x"
        results = verify(verifier, slow, "def f(x):\n    return 2 * x")
    assert [(one.verdict, one.score) for one in results] == [(Verdict.TIMEOUT, 0.5), (Verdict.RIGHT, 1.0)]
    assert results[0].milliseconds > 900


@linux
def test_order_and_equal_programs_of_different_problems(verifier):
    triple = Gold(metadata={"function": "f", "calls": [[1], [2]], "expected": [3, 6]})
    program = "def f(x):\n    return 2 * x if x == 1 else 6"
    results = verifier.verify([DOUBLE, triple, DOUBLE], [program, program, program])
    assert [one.score for one in results] == [0.25, 0.5, 0.25]
    assert verifier.verify([], []) == []
    with pytest.raises(ValueError, match="1 problems but 2 responses"):
        verifier.verify([DOUBLE], ["a", "b"])


@linux
def test_equal_programs_run_once():
    class Counting(Sandbox):
        count = 0

        def map(self, programs, workers=2):
            self.count += len(programs)
            return super().map(programs, workers)

    sandbox = Counting(Limits(seconds=120.0, cpu_seconds=30))
    results = verify(CodeVerifier(sandbox), *["def f(x):\n    return 2 * x"] * 5, "", "def f(x): return 1")
    assert sandbox.count == 2
    assert [one.score for one in results] == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"function": "f", "calls": [], "expected": []},
        {"function": "f", "calls": [[1], [2]], "expected": [1]},
        {"function": 3, "calls": [[1]], "expected": [1]},
        {"function": "f", "calls": [[object()]], "expected": [1]},
        {"function": "f", "calls": [[1]], "expected": [object()]},
        {"function": "f", "calls": 7, "expected": [1]},
    ],
)
def test_a_problem_without_usable_tests_is_unscorable(verifier, metadata):
    result = verify(verifier, "def f(x):\n    return 1", gold=Gold(metadata=metadata))[0]
    assert (result.verdict, result.score) == (Verdict.UNSCORABLE, 0)


@linux
def test_text_behind_a_stop_string_is_ignored():
    with CodeVerifier(Sandbox(Limits(seconds=120.0, cpu_seconds=30)), stop=("```",)) as verifier:
        result = verify(verifier, "def f(x):\n    return 2 * x\n```\ndef f(x):\n    return 0")[0]
    assert result.verdict is Verdict.RIGHT
    assert result.extracted == "def f(x):\n    return 2 * x"


@linux
def test_values_of_all_kinds(verifier):
    values = [None, True, 3, 2.5, "ä\n", [1, [2]], (1, (2,)), {1, 2}, {"a": (1,), 2: [None]}]
    values += [math.inf, math.nan, [], ()]
    gold = Gold(metadata={"function": "same", "calls": [[value] for value in values], "expected": values})
    assert verify(verifier, "def same(x):\n    return x", gold=gold)[0].score == 1
    swapped = "def same(x):\n    return tuple(x) if isinstance(x, list) else x"
    assert verify(verifier, swapped, gold=gold)[0].score == pytest.approx(11 / 13)


# --- a program that would rather not compute ---

FORGERIES = {
    "an object that is equal to everything": (
        "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A()"
    ),
    "an early exit": "import os\nos._exit(0)",
    "lines of its own": "import os\nos.write(1, b'[\"value\", 2]\\n' * 9)\ndef f(x): return None",
    "lines into all descriptors": (
        "import os\nfor n in range(3, 30):\n    try: os.write(n, b'[\"value\", true]\\n' * 9)\n"
        "    except OSError: pass\ndef f(x): return None"
    ),
    "the tests in the frames above": (
        "import sys\nframe = sys._getframe()\nfound = {}\nwhile frame:\n    found.update(frame.f_globals)\n"
        "    found.update(frame.f_locals)\n    frame = frame.f_back\n"
        "def f(x): return found['expected'][found['calls'].index([x])]"
    ),
    "the tests in memory": (
        "import gc\ndef f(x):\n    for thing in gc.get_objects():\n"
        "        if isinstance(thing, dict) and 'expected' in thing: return thing['expected'][0]"
    ),
    "the tests in a file": (
        "import os\nos.chdir('..')\ndef f(x):\n    import json\n    return json.load(open('tests.json'))['expected'][0]"
    ),
    "an encoder of its own": "import json\njson.dumps = lambda *_, **__: '[\"value\", true]'\ndef f(x): return 1",
    "a reward file": "open('reward.txt', 'w').write('1')\nopen('score', 'w').write('1.0')",
}


@linux
@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_earn_nothing(verifier, name):
    """No output of DOUBLE is 1, so that a forged True does not hit one by chance; and a 2 hits at most one."""
    result = verify(verifier, f"```python\n{FORGERIES[name]}\n```")[0]
    assert result.verdict is Verdict.WRONG
    assert result.score <= (0.25 if name == "lines of its own" else 0)


@linux
def test_hostile_answers_do_not_hurt_the_parent(verifier):
    deep = "x = 0\nfor _ in range(900): x = [x]\ndef f(_): return x"
    large = "def f(x): return 10 ** 100_000"
    endless = "def f(x): return 'x' * 10_000_000"
    cyclic = "y = []\ny.append(y)\ndef f(x): return y"
    surrogate = "def f(x): return '\\ud800'"
    broken = "import os\nos.write(3, b'[' * 100_000 + b'\\n\\xff\\x00\\n')\ndef f(x): return 2 * x"
    for program in (deep, large, endless, cyclic, surrogate, broken):
        assert verify(verifier, program)[0].verdict is Verdict.WRONG, program


# --- extraction ---


@pytest.mark.parametrize(
    ("response", "program", "fenced"),
    [
        ("```python\na = 1\n```", "a = 1", True),
        ("```\na = 1\n```\ntext\n```py\nb = 2\n```\nmore", "b = 2", True),
        ("text ```a``` text", "", False),  # code in a line is no program
        ("so:\n```python\ndef f():\n    return 1", "def f():\n    return 1", False),
        ("```python\na\n```\n```python\nb", "a", True),
        ("def f():\n    return 1\n\n# done\nx = f()\nThe end.", "def f():\n    return 1\n\n# done\nx = f()", False),
        ("We import nothing from anywhere.\n@cache\ndef f(): pass", "@cache\ndef f(): pass", False),
        ("from here on I think\nfrom math import pi\nf = 1", "from math import pi\nf = 1", False),
        ("no code at all", "", False),
        ("", "", False),
    ],
)
def test_extraction(response, program, fenced):
    assert extract_program(response) == (program, fenced)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("`\n de:f()x=#@ \ud800"), max_size=60))
def test_extraction_never_raises(text):
    program, fenced = extract_program(text)
    assert isinstance(program, str)
    assert isinstance(fenced, bool)


def test_extraction_is_fast_on_long_lines():
    for text in ("def f" + "x" * 300_000, "def f\n" + "x" * 300_000, "def f\nx:" + "y" * 300_000, "`" * 300_000):
        extract_program(text)


# --- values ---

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=2), max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_encoding_and_back(value):
    text = json.dumps(encode(value))
    assert decode(json.loads(text)) == value
    assert equal(encode(value), json.loads(text))


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (1, 1.0, True),
        (True, 1, True),
        (1, "1", False),
        (0.3, 0.1 + 0.2, True),
        (1e20, 1e20 * (1 + 1e-12), True),
        (0.0, 1e-8, False),
        (math.nan, math.nan, True),
        (math.inf, -math.inf, False),
        (math.inf, 1e308, False),
        (1.5, None, False),
        ([1], (1,), False),
        ([0.3], [0.1 + 0.2], True),
        ([1, 2], [1, 2, 3], False),
        ({1, 2}, {2, 1}, True),
        ({1: 2, 3: 4}, {3: 4, 1: 2}, True),
        ({1: 2}, {1: 3}, False),
        ({1: 2}, {"1": 2}, False),
        ((), [], False),
        (None, False, False),
        (10**400, 1.0, False),
    ],
)
def test_equality(expected, found, same):
    assert equal(encode(expected), encode(found)) is same


def test_only_plain_values_are_carried():
    class Text(str):
        pass

    for value in (Text("a"), object(), 1j, b"a", [object()], {"a": object()}):
        with pytest.raises(TypeError, match="cannot be carried over"):
            encode(value)
