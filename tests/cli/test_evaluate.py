"""`zerozoo evaluate`: exact numbers from a scripted sampler, and every mistake of the user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from zerozoo.cli import evaluate
from zerozoo.cli.main import main
from zerozoo.language import measure
from zerozoo.language.behaviours import RuleJudge
from zerozoo.language.families import tiny_model
from zerozoo.language.measure import Settings, evaluate_suite
from zerozoo.language.models import LanguageModel, save_model
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.language.suites import Suite, open_suite
from zerozoo.recipes.reasoning.simplerl_zoo import Config
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task

# Four samples for each of four problems: (text, tokens, stopped). Right are 4, 2, 1 and 0 of them.
ANSWERS = {
    "What is 1 + 1?": [(" 2", 2, True), (" \\boxed{2}", 10, True), (" 2", 2, True), (" 2", 2, True)],
    "What is 2 + 2?": [(" 4", 2, True), (" 5", 2, True), (" 4", 4, True), (" 3, wait", 8, True)],
    "What is 3 + 3?": [(" 7", 2, True), (" 6", 2, True), (" 8", 12, False), (" 9", 2, True)],
    "What is 4 + 4?": [(" 1", 2, True), (" 1", 2, True), ("", 1, True), (" 12 12 12 12 12 12 12 12 12", 12, False)],
}


class ScriptedSampler:
    """Writes what the script says for the question that is in the prompt, and remembers how it was asked."""

    calls: list[tuple[list[str], Decoding]] = []

    def __init__(self, policy: LanguageModel, max_rows: int = 0) -> None:
        self.policy = policy

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Samples:
        texts = [self.policy.decode(prompt) for prompt in prompts]
        self.calls.append((texts, decoding))
        rows = [row for text in texts for row in self._script(text)[:samples]]
        lengths = torch.tensor([length for _, length, _ in rows])
        shape = len(rows), int(lengths.max())
        return Samples(
            tokens=torch.zeros(shape, dtype=torch.int64),
            lengths=lengths,
            logprobs=torch.zeros(shape),
            stopped=torch.tensor([stopped for _, _, stopped in rows]),
            groups=torch.arange(len(prompts)).repeat_interleave(samples),
            texts=[text for text, _, _ in rows],
        )

    def _script(self, text: str) -> list[tuple[str, int, bool]]:
        return next((rows for question, rows in ANSWERS.items() if question in text), [(" 0", 2, True)] * 4)


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def saved_model(policy: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(policy, directory)
    return directory


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Decoding]]:
    """Models answer by the script; gives the list of (prompts, decoding) of every call."""
    ScriptedSampler.calls = []
    monkeypatch.setattr(measure, "NativeSampler", ScriptedSampler)
    return ScriptedSampler.calls


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [
        {"question": question, "answer": str(2 * number), "level": f"Level {1 + number // 3}"}
        for number, question in enumerate(ANSWERS, start=1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_directory(saved_model: Path, tmp_path: Path) -> Path:
    """A run on one-digit sums with a model that was saved at its end."""
    config = Config(
        model=str(saved_model), data="arithmetic", level="one-digit", heldout_size=5, max_new_tokens=9, stop=("\n",)
    )
    with Run.start(tmp_path / "run", "simplerl-zoo", asdict(config), 0) as run:
        run.log(0, {"reward": 0.0})
    (tmp_path / "run" / "model").symlink_to(saved_model)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def results(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def table(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main(["evaluate", *map(str, arguments)]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake of the user gets."""
    assert main(["evaluate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_exact_numbers_of_four_problems_with_four_samples(scripted, problems, saved_model, capsys):
    (result,) = results(capsys, saved_model, "--suite", problems, "--samples", 4, "--batch", 8)
    assert (result["problems"], result["judged"]) == (4, 4)
    assert result["verdicts"] == {"right": 7, "wrong": 9, "unscorable": 0, "timeout": 0}
    assert result["accuracy"] == pytest.approx(
        {"value": 0.5, "low": 0.15004, "high": 0.84996}, abs=1e-5
    )  # Wilson, 2 of 4
    assert result["average"]["value"] == pytest.approx(7 / 16)
    found = {k: interval["value"] for k, interval in result["pass_at_k"].items()}
    # pass@2 of 4, 2, 1, 0 right ones: 1, 1 - 1/6, 1 - 3/6, 0
    assert found == pytest.approx({"1": 7 / 16, "2": (1 + 5 / 6 + 1 / 2) / 4, "4": 3 / 4})
    for interval in result["pass_at_k"].values():
        assert 0 <= interval["low"] < interval["value"] < interval["high"] <= 1
    metrics = result["metrics"]
    assert metrics["response/length"] == pytest.approx(67 / 16)
    assert metrics["response/clip_ratio"] == 2 / 16
    assert metrics["response/stopped_length"] == pytest.approx((67 - 24) / 14)
    assert metrics["response/length_right"] == pytest.approx((2 + 10 + 2 + 2 + 2 + 4 + 2) / 7)
    assert metrics["response/length_wrong"] == pytest.approx((67 - 24) / 9)
    assert metrics["response/box_ratio"] == 1 / 16
    assert metrics["response/repeat_ratio"] == 1 / 16
    assert metrics["response/reflection"] == 1 / 16
    levels = result["groups"]["level"]
    assert {level: (one["problems"], one["accuracy"]["value"]) for level, one in levels.items()} == {
        "1": (2, 0.75),
        "2": (2, 0.125),
    }
    assert result["settings"]["temperature"] == 1.0
    assert result["tokens"] == 67
    assert "rows" not in result
    assert [len(prompts) for prompts, _ in scripted] == [2, 2]  # 8 rows at once are 2 problems x 4


def test_the_table_shows_the_same_numbers(scripted, problems, saved_model, capsys):
    lines = table(capsys, saved_model, "--suite", problems, "--samples", 4, "--k", "4,2", "--behaviours", "rule")
    assert lines[0] == f"{saved_model} on {problems}"
    assert lines[1].startswith("4 problems x 4, temperature 1, top-p 1, seed 0, at most 256 tokens, prompt 'simple',")
    assert "Responses have at most 256 tokens" in lines[2]  # the recommended 1024 have no room in 512
    assert "accuracy, % (first sample) 50.0 [15.0, 85.0]" in lines
    assert any(line.startswith("avg@4, % 43.8 [") for line in lines)
    assert any(line.startswith("pass@2, % 58.3 [") for line in lines)
    assert any(line.startswith("pass@4, % 75.0 [") for line in lines)
    assert not any(line.startswith("pass@1") for line in lines)
    for row in (
        "right / wrong 7 / 9",
        "checks that timed out 0",
        "problems without usable gold 0",
        "length, tokens 4.19",
        "of those that stopped 3.07",
        "of right answers 3.43",
        "of wrong answers 4.78",
        "cut off at the limit, % 12.5",
        "with a box, % 6.2",
        "repeating themselves, % 6.2",
        "reflection keywords, each 0.0625",
        "backtracking, % 0.0 [0.0, 49.0]",
    ):
        assert row in lines
    assert "1 75.0 [50.0, 100.0] of 2" in lines  # the mean of two problems: 1 and 0.5
    assert any(line.startswith("2 12.5 [0.0, 25.0] of 2") for line in lines)


def test_one_sample_is_greedy_and_its_accuracy_has_wilsons_interval(scripted, problems, saved_model, capsys):
    lines = table(capsys, saved_model, "--suite", problems)
    assert "accuracy, % 50.0 [15.0, 85.0]" in lines
    assert not any(line.startswith(("avg@", "pass@")) for line in lines)
    assert ", greedy, " in lines[1]
    ((_, decoding),) = scripted
    assert (decoding.temperature, decoding.top_p) == (0.0, 1.0)
    assert decoding.stop_strings == ("Question", "Answer")  # those of the prompt "simple"


def test_sampling_options_reach_the_sampler(scripted, problems, saved_model, capsys):
    options = ["--temperature", 0.7, "--top-p", 0.95, "--max-new-tokens", 33, "--template", "plain-qa"]
    (result,) = results(capsys, saved_model, "--suite", problems, *options, "--extractor", "boxed", "--seed", 3)
    ((prompts, decoding),) = scripted
    assert prompts[0] == "Question: What is 1 + 1?\nAnswer:"
    assert (decoding.temperature, decoding.top_p, decoding.max_new_tokens) == (0.7, 0.95, 33)
    assert result["verdicts"]["right"] == 0  # no first sample has a box
    assert result["settings"]["extractor"] == "boxed"
    assert result["settings"]["seed"] == 3


def test_loose_numbers_are_those_of_the_papers_grader(scripted, tmp_path, saved_model, capsys):
    problems = tmp_path / "percent.jsonl"
    problems.write_text('{"question": "What is 1 + 1?", "answer": "0.02"}\n')
    for options, right in (([], 0), (["--loose-numbers"], 1)):
        (result,) = results(capsys, saved_model, "--suite", problems, *options)
        assert result["verdicts"]["right"] == right
        assert result["settings"]["loose_numbers"] is bool(options)


def test_limit_takes_the_same_problems_wherever_they_stand(scripted, problems, saved_model, tmp_path, capsys):
    lines = problems.read_text().splitlines(keepends=True)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(reversed(lines)))
    chosen = []
    for path in (problems, turned):
        output = tmp_path / "rows.json"
        printed = table(capsys, saved_model, "--suite", path, "--limit", 2, "--output", output)
        assert "The first 2 of 4 problems, by the hash of their question." in printed
        (result,) = json.loads(output.read_text())
        assert result["problems"] == 2
        chosen.append([row["question"] for row in result["rows"]])
    assert chosen[0] == chosen[1]


def test_output_has_every_response(scripted, problems, saved_model, tmp_path, capsys):
    output = tmp_path / "new" / "all.json"
    table(capsys, saved_model, "--suite", problems, "--samples", 2, "--output", output)
    (result,) = json.loads(output.read_text())
    assert len(result["rows"]) == 8
    assert result["rows"][3] == {
        "sample": 1,
        "level": "1",
        "task": "sums/1",
        "question": "What is 2 + 2?",
        "gold": "4",
        "response": " 5",
        "verdict": "wrong",
        "extracted": "5",
        "boxed": False,
        "length": 2,
        "finish": "stop",
    }


def test_models_and_suites_are_columns(scripted, problems, saved_model, run_directory, capsys):
    lines = table(capsys, saved_model, run_directory, "--suite", problems, "arithmetic:one-digit", "--limit", 3)
    heads = [line for line in lines if line[:3] in ("A ", "B ", "C ", "D ") or line[1:2] == " " and line[0] in "ABCD"]
    assert [head.split()[0] for head in heads[:4]] == ["A", "B", "C", "D"]
    assert heads[0] == f"A {saved_model} on {problems}"
    assert heads[3] == f"D {run_directory} on arithmetic:one-digit"
    accuracy = next(line for line in lines if line.startswith("accuracy, %"))
    assert accuracy.count("[") == 4
    level = [line for line in lines if line.startswith("1 ")]
    assert level[0].count("-") == 2  # the arithmetic has one level only


def test_heldout_asks_the_runs_own_problems_as_in_training(scripted, run_directory, capsys):
    (result,) = results(capsys, run_directory)
    assert result["suite"] == "heldout (arithmetic:one-digit)"
    assert result["problems"] == 5
    assert result["settings"]["extractor"] == "first-number"
    ((prompts, decoding),) = scripted
    assert all(prompt.startswith("Question: What is ") and prompt.endswith("?\nAnswer:") for prompt in prompts)
    assert decoding.max_new_tokens == 9
    assert decoding.stop_strings == ("\n",)


def test_a_model_beside_a_run_is_asked_as_the_run(scripted, run_directory, saved_model, capsys):
    before, after = results(capsys, saved_model, run_directory)
    assert before["model"] == str(saved_model)
    assert before["suite"] == after["suite"]
    assert before["settings"] == after["settings"]


def test_another_suite_is_asked_with_the_prompt_of_the_runs_training(scripted, run_directory, problems, capsys):
    (result,) = results(capsys, run_directory, "--suite", problems)
    assert result["settings"]["template"] == "plain-qa"
    assert result["settings"]["extractor"] == "lenient"  # the config left the extractor to its task
    assert result["settings"]["max_new_tokens"] == 9
    assert scripted[0][1].stop_strings == ("\n",)


def test_a_real_model_gives_the_same_numbers_in_any_batch(run_directory, capsys):
    rows = []
    for batch in (4, 256):
        output = run_directory / "rows.json"
        table(capsys, run_directory, "--samples", 4, "--batch", batch, "--output", output)
        (result,) = json.loads(output.read_text())
        rows.append([row["response"] for row in result["rows"]])
    assert len(rows[0]) == 20
    assert rows[0] == rows[1]
    assert len(set(rows[0])) > 10  # sampled, not greedy


class ScriptedVerifier:
    """Judges by a list of verdicts; knows which golds nothing can be compared with."""

    def __init__(self, verdicts: Sequence[str], unusable: Sequence[str] = ()) -> None:
        self.verdicts, self.unusable = list(verdicts), unusable

    def verify(self, problems, responses) -> list[Verification]:
        if not any(responses):  # asked about the golds alone
            verdicts = ["unscorable" if problem.answer in self.unusable else "wrong" for problem in problems]
        else:
            verdicts = [self.verdicts.pop(0) for _ in problems]
        return [Verification(Verdict(verdict), "", 1.0, False, 0.0) for verdict in verdicts]


def sums(count: int, **fields) -> Suite:
    tasks = tuple(Task(f"{n}", f"What is {n} + 0?", str(n), "test") for n in range(count))
    return Suite("sums", tasks, **{"max_new_tokens": 8, **fields})


def test_unscorable_problems_are_left_out_and_timeouts_are_not(policy):
    # The response to problem 3 repeats its unusable gold letter by letter: right, but not judged.
    verifier = ScriptedVerifier(["right", "unscorable", "timeout", "right", "wrong"], unusable=["1", "3"])
    result = evaluate_suite(policy, sums(5), Settings(), sampler=ScriptedSampler(policy), verifier=verifier)
    assert result.verdicts == {"right": 1, "wrong": 1, "unscorable": 2, "timeout": 1}
    assert (result.problems, result.judged) == (5, 3)
    assert result.accuracy.value == pytest.approx(1 / 3)
    assert evaluate.metric_rows([result])[1:4] == [
        ["right / wrong", "1 / 1"],
        ["checks that timed out", "1"],
        ["problems without usable gold", "2"],
    ]


def test_no_usable_gold_at_all_is_refused(policy):
    verifier = ScriptedVerifier(["unscorable"] * 2, unusable=["0", "1"])
    with pytest.raises(UserError, match="None of the 2 gold answers can be judged, for example '0'"):
        evaluate_suite(policy, sums(2), Settings(), sampler=ScriptedSampler(policy), verifier=verifier)


def test_broken_golds_of_a_file_are_told_from_wrong_answers(scripted, saved_model, tmp_path, capsys):
    path = tmp_path / "broken.jsonl"
    rows = [{"question": "What is 1 + 1?", "answer": "2"}, {"question": "What is it?", "answer": "\\frac{"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (result,) = results(capsys, saved_model, "--suite", path)
    assert (result["problems"], result["judged"]) == (2, 1)
    assert result["accuracy"]["value"] == 1.0


def test_behaviours_are_judged_on_the_first_response_of_each_problem(policy):
    class CountingJudge(RuleJudge):
        def judge(self, texts):
            self.texts = list(texts)
            return [None, {"verification"}, set(), {"verification", "enumeration"}]

    judge = CountingJudge()
    tasks = tuple(Task(question, question, "2", "test") for question in ANSWERS)
    suite = Suite("sums", tasks, max_new_tokens=8)
    result = evaluate_suite(
        policy,
        suite,
        Settings(samples=3),
        judge=judge,
        sampler=ScriptedSampler(policy),
        verifier=ScriptedVerifier(["wrong"] * 12),
    )
    assert judge.texts == [rows[0][0] for rows in ANSWERS.values()]
    assert result.unread == 1
    assert result.behaviours["verification"].value == pytest.approx(2 / 3)
    assert result.behaviours["backtracking"].value == 0
    rows = {row[0]: row[1] for row in evaluate.metric_rows([result])}
    assert rows["verification, %"].startswith("66.7 [")
    assert rows["unread by the judge"] == "1"


def test_progress_is_told_after_every_batch(policy):
    seen = []
    evaluate_suite(
        policy,
        sums(5),
        Settings(rows=2),
        sampler=ScriptedSampler(policy),
        verifier=ScriptedVerifier(["wrong"] * 5),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_long_prompts_are_left_out_and_said(policy):
    tasks = (*sums(1).tasks, Task("long", "x" * 600, "1", "test"))
    suite = Suite("mixed", tasks, max_new_tokens=8)
    result = evaluate_suite(
        policy, suite, Settings(), sampler=ScriptedSampler(policy), verifier=ScriptedVerifier(["right"])
    )
    assert result.problems == 1
    assert result.notes == ("1 problem was left out: prompt and response have no room in 512 tokens.",)
    with pytest.raises(UserError, match="Every prompt is too long"):
        evaluate_suite(policy, Suite("long", tasks[1:], max_new_tokens=8), Settings())


def test_wrapped_questions_are_not_wrapped_again(policy):
    wrapped = Task("w", "<|im_start|>What is 1 + 1?", "2", "test", metadata={"template": "{question}"})
    sampler = ScriptedSampler(policy)
    ScriptedSampler.calls = []
    suite = Suite("w", (wrapped,), template="simple", max_new_tokens=8)
    evaluate_suite(policy, suite, Settings(), sampler=sampler, verifier=ScriptedVerifier(["right"]))
    assert sampler.calls[0][0] == ["<|im_start|>What is 1 + 1?"]


def test_generated_suites_are_their_heldout_part():
    suite = open_suite("arithmetic:one-digit")
    assert (suite.name, len(suite.tasks), suite.extractor, suite.template) == (
        "arithmetic:one-digit",
        66,
        "first-number",
        "plain-qa",
    )
    assert open_suite("countdown").verifier == "countdown"


def test_intervals_are_honest_where_no_answer_is_right(policy):
    tasks = [Task(str(n), f"What is {n}?", "1", "t", level) for n, level in enumerate(["hard", "easy", "medium"] * 2)]
    result = evaluate_suite(
        policy,
        Suite("none", tuple(tasks), max_new_tokens=8),
        Settings(samples=2),
        sampler=ScriptedSampler(policy),
        verifier=ScriptedVerifier(["wrong"] * 12),
    )
    # Wilson for none of n: high = z^2 / (n + z^2)
    for interval, problems in (
        (result.average, 6),
        (result.pass_at_k[2], 6),
        (result.groups["level"]["hard"].accuracy, 2),
    ):
        assert (interval.value, interval.low) == (0.0, 0.0)
        assert interval.high == pytest.approx(3.84146 / (problems + 3.84146), abs=1e-5)
    assert list(result.groups["level"]) == ["easy", "medium", "hard"]


def test_subject_and_level_groups(policy):
    tasks = [Task(str(n), f"What is {n}?", "1", "t", str(n % 2), {"subject": "algebra"}) for n in range(4)]
    result = evaluate_suite(
        policy,
        Suite("groups", tuple(tasks), max_new_tokens=8),
        Settings(),
        sampler=ScriptedSampler(policy),
        verifier=ScriptedVerifier(["right", "wrong", "right", "right"]),
    )
    assert list(result.groups) == ["level"]  # one subject only is no group
    assert result.groups["level"]["0"].accuracy.value == 1.0
    assert result.groups["level"]["1"].accuracy.value == 0.5
    assert result.groups["level"]["1"].accuracy.low == pytest.approx(0.0945, abs=1e-4)  # Wilson, 1 of 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--suite", "gsm9k"], "Unknown suite 'gsm9k'; choose heldout, gsm8k"),
        (["--suite", "missing.jsonl"], "There is no file or folder 'missing.jsonl'"),
        (["--suite", "arithmetic:huge"], "Unknown arithmetic level 'huge'"),
        ([], "no run was given"),
        (["--samples", 2, "--k", "4"], "pass@4 needs at least 4 samples a problem; choose --samples and --k to match."),
        (["--k", "1,two"], "--k must be whole numbers with commas between them, such as 1,2,4, not '1,two'."),
        (["--k", "0"], "--k must be whole numbers"),
        (["--samples", 0], "--samples must be at least 1, not 0."),
        (["--samples", 4, "--temperature", 0], "At temperature 0 all 4 samples are the same"),
        (["--temperature", -1], "--temperature must not be negative"),
        (["--top-p", 0], "--top-p must lie above 0"),
        (["--limit", 0], "--limit must be at least 1, not 0."),
        (["--batch", 0], "--batch must be at least 1, not 0."),
        (["--extractor", "last"], "Unknown extractor 'last'; choose from: lenient"),
        (["--template", "simpel"], "Unknown prompt template 'simpel'"),
        (["--behaviours", "endpoint"], "--behaviours endpoint needs --judge-url and --judge-model."),
        (["--judge-url", "http://localhost"], "The --judge options belong to --behaviours endpoint."),
        (["--output", "rows.csv"], "--output must be a file whose name ends in .json, not 'rows.csv'."),
        (["--suite", "arithmetic:twenty", "--device", "gpu"], "Unknown device 'gpu'"),
        (["--suite", "arithmetic:twenty", "--dtype", "int4"], "unknown dtype 'int4'"),
        (["--suite", "arithmetic:twenty", "--max-new-tokens", 600], "max_new_tokens is 600, but "),
        (
            ["--suite", "countdown", "--extractor", "boxed"],
            "Countdown reads the whole response; leave out the extractor.",
        ),
        (["--suite", "countdown", "--loose-numbers"], "Loose numbers belong to mathematics; countdown:mixed has"),
    ],
)
def test_mistakes_are_one_sentence(saved_model, capsys, options, sentence):
    assert sentence in mistake(capsys, saved_model, *options)


def test_empty_and_broken_files(saved_model, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert f"{empty} holds no problems." in mistake(capsys, saved_model, "--suite", empty)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "1 + 1", "answer": "2"}\n{"question": \n')
    assert "line 2: broken JSON" in mistake(capsys, saved_model, "--suite", broken)


def test_missing_models_and_unfinished_runs(run_directory, tmp_path, capsys):
    missing = tmp_path / "nowhere"
    assert f"there is no model folder {missing}" in mistake(capsys, missing, "--suite", "arithmetic:twenty")
    (run_directory / "model").unlink()
    line = mistake(capsys, run_directory)
    assert "has no saved model yet" in line
    assert f"zerozoo train simplerl-zoo --resume {run_directory}" in line
    assert "Name at least one run directory or model" in mistake(capsys)


def test_a_run_without_problems_of_its_own(saved_model, tmp_path, capsys):
    with Run.start(tmp_path / "walker", "walker", {"steps": 1}, 0) as run:
        run.log(0, {"reward": 0.0})
    (tmp_path / "walker" / "model").symlink_to(saved_model)
    assert "has no held-out problems to answer" in mistake(capsys, tmp_path / "walker")


def test_endpoint_judge_gets_its_options():
    judge = evaluate.make_judge("endpoint", "http://localhost:1/v1", "judge", "JUDGE_KEY")
    assert (judge.base_url, judge.model, judge.api_key_variable) == ("http://localhost:1/v1", "judge", "JUDGE_KEY")
    assert evaluate.make_judge(None, None, None, None) is None
