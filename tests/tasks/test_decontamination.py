from __future__ import annotations

import pytest

from zerozoo.runs.errors import UserError
from zerozoo.tasks.decontamination import Overlap, decontaminate, find_overlaps
from zerozoo.tasks.task import Task


def tasks(*questions, prefix="t"):
    return [Task(f"{prefix}{place}", question, "", "test") for place, question in enumerate(questions)]


def words(start, count):
    return " ".join(f"w{number}" for number in range(start, start + count))


def test_shares_by_hand():
    """An evaluation text of 10 words; training texts that share runs of 3 words with it."""
    evaluation = tasks(words(0, 10), prefix="e")
    training = tasks(
        words(0, 10),  # all
        f"x {words(0, 3)} y {words(7, 3)} z",  # two runs of 3: 6 of 10
        f"x {words(2, 4)} y",  # 4 of 10
        f"{words(0, 2)} x {words(4, 2)} y {words(8, 2)}",  # no run of 3
        f"{words(0, 3)} {words(1, 3)}",  # runs that overlap: 0 to 3, 4 of 10
    )
    report = find_overlaps(training, evaluation, n=3, share=0.0)
    assert report.overlaps == (
        Overlap("e0", "t0", 1.0),
        Overlap("e0", "t1", 0.6),
        Overlap("e0", "t2", 0.4),
        Overlap("e0", "t4", 0.4),
    )
    assert find_overlaps(training, evaluation, n=3, share=0.5).training_ids == {"t0", "t1"}
    assert find_overlaps(training, evaluation, n=3, share=0.6).training_ids == {"t0"}  # more than, not as much as
    assert find_overlaps(training, evaluation, n=4, share=0.0).training_ids == {"t0", "t2"}


def test_matches_in_different_training_texts_do_not_add_up():
    evaluation = tasks(words(0, 10), prefix="e")
    halves = tasks(words(0, 5), words(5, 5))
    assert find_overlaps(halves, evaluation, n=3, share=0.5).overlaps == ()
    assert find_overlaps(tasks(f"{words(0, 5)} x {words(5, 5)}"), evaluation, n=3, share=0.5).training_ids == {"t0"}


def test_case_blanks_and_marks():
    evaluation = tasks("How many NUTS, Ann, do you have in  all?", prefix="e")
    training = tasks("how many nuts, ann, do you have in all?", "how many nuts ann do you have in all?")
    assert find_overlaps(training, evaluation).training_ids == {"t0"}


def test_short_texts_match_as_a_whole_only():
    evaluation = tasks("What is 7 + 5?", prefix="e")
    training = tasks("what is 7 + 5 ?", "Say: what is 7 + 5? And then?", "What is 7 + 6?", "")
    report = find_overlaps(training, evaluation)
    assert report.overlaps == (Overlap("e0", "t0", 1.0),)
    assert find_overlaps(tasks("a"), tasks("", prefix="e")).overlaps == ()


def test_report_and_removal():
    evaluation = tasks(*(words(100 * place, 9) for place in range(50)), prefix="e")
    training = tasks(words(0, 9), "something else", f"{words(0, 9)} again", words(100, 9))
    kept, report = decontaminate(training, evaluation)
    assert [task.id for task in kept] == ["t1"]
    assert report.contaminated_share == pytest.approx(2 / 50)
    assert report.is_contaminated
    assert str(report) == "2 of 50 evaluation problems overlap with 3 of 4 training problems."
    one = find_overlaps(training[:3], evaluation)
    assert one.contaminated_share == pytest.approx(0.02)
    assert not one.is_contaminated  # 2 % is not more than 2 %
    assert decontaminate(kept, evaluation)[1].overlaps == ()


def test_another_text_is_compared():
    first = Task("a", "question", words(0, 9), "test")
    second = Task("b", "another", words(0, 9), "test")
    assert find_overlaps([first], [second]).overlaps == ()
    assert find_overlaps([first], [second], text=lambda task: task.answer).training_ids == {"a"}


def test_errors():
    pair = tasks("a"), tasks("a", prefix="e")
    for options in ({"n": 0}, {"share": 1.0}, {"share": -0.1}):
        with pytest.raises(UserError, match="n of at least 1"):
            find_overlaps(*pair, **options)
    with pytest.raises(UserError, match="evaluation problems to compare"):
        find_overlaps(tasks("a"), [])
    with pytest.raises(UserError, match="training problems with different ids"):
        find_overlaps([*tasks("a"), *tasks("b")], pair[1])
    with pytest.raises(UserError, match="No training problem is left"):
        decontaminate(*pair)
