"""`zerozoo doctor`: it must find what is broken, so most tests break something."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zerozoo.cli import doctor
from zerozoo.cli.doctor import ABSENT, FAIL, OK, WARN, Check
from zerozoo.cli.main import main
from zerozoo.language import profile
from zerozoo.language.families import SUPPORTED, byte_tokenizer, character_tokenizer, tiny_model
from zerozoo.language.models import LanguageModel, save_model, wrap_model
from zerozoo.language.parity import THRESHOLD, sampler_parity
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.reference import TransformersSampler
from zerozoo.runs.errors import UserError

CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return tiny_model("llama")


class BrokenSampler:
    """The native sampler with one mistake in what it does or reports."""

    def __init__(self, policy: LanguageModel, shift: float = 0.0, temperature: float | None = None, top_p: float = 0.0):
        self.sampler, self.policy = NativeSampler(policy), policy
        self.shift, self.temperature, self.top_p = shift, temperature, top_p

    def sample(self, prompts, samples, decoding, generator):
        if self.temperature is not None:
            decoding = replace(decoding, temperature=self.temperature)
        if self.top_p:
            decoding = replace(decoding, top_p=self.top_p)
        drawn = self.sampler.sample(prompts, samples, decoding, generator)
        drawn.logprobs[0, 3] += self.shift
        return drawn


def by_name(checks) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.parametrize("family", SUPPORTED)
def test_sampler_learner_and_transformers_agree(family):
    parity = sampler_parity(tiny_model(family), Decoding(16, 0.7))
    assert parity.largest < THRESHOLD / 5
    assert parity.untempered > 0.1
    assert parity.tokens > 40


def test_the_reference_sampler_agrees_too(policy):
    parity = sampler_parity(policy, Decoding(16, 0.7), sampler=TransformersSampler(policy))
    assert parity.largest < THRESHOLD / 5


def test_greedy_log_probs_are_those_of_temperature_1(policy):
    parity = sampler_parity(policy, Decoding(16, 0.0))
    assert parity.largest < THRESHOLD / 5
    assert parity.untempered == parity.learner


def test_one_wrong_log_prob_of_many_is_found(policy):
    parity = sampler_parity(policy, Decoding(16, 1.0), sampler=BrokenSampler(policy, shift=0.25))
    assert [parity.learner, parity.packed, parity.reference] == pytest.approx([0.25] * 3, abs=1e-4)


def test_a_forgotten_temperature_is_found(policy):
    parity = sampler_parity(policy, Decoding(16, 0.7), sampler=BrokenSampler(policy, temperature=1.0))
    assert parity.largest > 0.1  # what the sampler reports is of temperature 1 (trap 10)
    assert parity.untempered < THRESHOLD


def test_tokens_outside_the_nucleus_are_counted(policy):
    inside = sampler_parity(policy, Decoding(16, 1.0, top_p=0.5))
    assert inside.outside == 0
    forgotten = sampler_parity(policy, Decoding(16, 1.0, top_p=0.5), sampler=BrokenSampler(policy, top_p=1.0))
    assert forgotten.outside > 10
    assert forgotten.largest < THRESHOLD


def test_parity_lines_of_a_sound_and_of_a_broken_sampler(policy):
    sound = doctor.measure_parity(policy)
    assert [check.status for check in doctor.check_parity(sound)] == [OK, OK, OK]
    plain, warm, cut = sound
    broken = doctor.check_parity((replace(plain, packed=0.1), replace(warm, reference=0.1), replace(cut, outside=1)))
    assert [check.status for check in broken] == [FAIL, FAIL, FAIL]
    sure = by_name(doctor.check_parity((plain, replace(warm, untempered=0.0), cut)))
    assert sure["temperature"].status == WARN
    assert "says nothing" in sure["temperature"].advice


def test_tokenizer_of_a_sound_model(policy):
    checks = by_name(doctor.check_tokenizer(policy))
    assert checks["end ids"].found == "1 <eos>"
    assert checks["padding id"] == Check("padding id", OK, "0 <pad>")
    assert checks["BOS"].found == "3 <bos> in front"
    assert checks["chat template"].status == ABSENT
    assert checks["round trip"].status == OK
    assert by_name(doctor.check_tokenizer(tiny_model("qwen2")))["BOS"].found == "none in front of a text"


def test_padding_that_ends_a_text_is_a_warning(policy):
    check = by_name(doctor.check_tokenizer(replace(policy, pad_id=1)))["padding id"]
    assert check.status == WARN
    assert "also an end id" in check.advice


def test_a_chat_template_with_a_bos_does_not_double_it():
    tokenizer = character_tokenizer("What is7+5?\nTheanswr\\boxd{12}.", prepend_bos=True)
    tokenizer.chat_template = CHAT
    policy = wrap_model(tiny_model("llama").model, tokenizer, "chatty")
    checks = by_name(doctor.check_tokenizer(policy))
    assert checks["chat template"].status == OK
    assert checks["BOS"].status == OK
    tokenizer.chat_template = "{{ bos_token }}" + CHAT  # writes two by itself
    check = by_name(doctor.check_tokenizer(policy))["BOS"]
    assert check.status == FAIL
    assert "twice with the chat template" in check.found


def test_lost_characters_and_missing_embeddings_are_found():
    model = tiny_model("llama", vocabulary="What is7+5?\nThe answr").model
    small = by_name(doctor.check_tokenizer(wrap_model(model, character_tokenizer("What is7+5?\nThe answr"), "small")))
    assert small["round trip"].status == WARN
    assert small["round trip"].advice == "prompts must do without '.12\\\\bdox{}'"
    large = by_name(doctor.check_tokenizer(wrap_model(model, byte_tokenizer(), "large")))
    assert large["vocabulary"].status == FAIL


def test_free_memory_is_the_smaller_of_machine_and_control_group(tmp_path):
    assert doctor.free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  16 kB\nMemAvailable:   8000 kB\n")
    assert doctor.free_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert doctor.free_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert doctor.free_memory(tmp_path) == 4000


def test_folders_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    assert doctor.write_problem(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path / "cache"))
    checks = by_name(doctor.check_files())
    assert checks["runs"].status == FAIL
    assert "cannot be written" in checks["runs"].found
    assert checks["model cache"].status == OK


def test_missing_packages_say_what_they_give(monkeypatch):
    found = [("rich", "rich", "tables", "pip install rich"), ("nope", "no_such_module", "wonders", "pip install nope")]
    monkeypatch.setattr(doctor, "PACKAGES", found)
    installed, missing = doctor.check_packages()
    assert installed == Check("rich", OK, f"{importlib.metadata.version('rich')}, gives tables")
    assert missing == Check("nope", ABSENT, "gives wonders", "pip install nope")


def test_machine_lines(monkeypatch):
    checks = by_name(doctor.check_machine())
    assert {"python", "libraries", "processor", "threads", "narrow", "memory", "GPU"} == set(checks)
    monkeypatch.setattr(doctor, "free_memory", lambda: 2**29)
    assert by_name(doctor.check_machine())["memory"].status == FAIL
    monkeypatch.setattr(doctor, "free_memory", lambda: 2**31)
    assert by_name(doctor.check_machine())["memory"].status == WARN


def test_threads_are_measured_and_the_faster_number_is_named(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(
        profile, "matrix_rate", lambda device, dtype: {1: 100.0, 2: 190.0, 4: 120.0}[torch.get_num_threads()]
    )
    check = doctor.check_threads(4, 4)
    assert (check.status, check.advice) == (WARN, "set OMP_NUM_THREADS=2, which is faster here")
    assert check.found == "torch computes with 4 of 4; 100 GFLOP/s with 1, 190 GFLOP/s with 2, 120 GFLOP/s with 4"
    assert doctor.check_threads(2, 4).status == OK
    assert doctor.check_threads(8, 4).advice == "set OMP_NUM_THREADS=2, more threads than cores are slower"
    assert torch.get_num_threads() == before


def test_a_little_faster_is_noise(monkeypatch):
    monkeypatch.setattr(profile, "matrix_rate", lambda device, dtype: {1: 110.0, 2: 100.0}[torch.get_num_threads()])
    assert doctor.check_threads(2, 2).status == OK


def failing():
    yield Check("first", OK, "fine")
    raise UserError("mend this")


def crashing():
    raise ValueError("odd\nmore")
    yield


@pytest.mark.parametrize(
    ("bfloat16", "int8", "status", "found", "advice"),
    [
        (True, True, OK, "units for --dtype bfloat16 and --precision int8", ""),
        (False, True, OK, "units for --precision int8", "--dtype bfloat16 bring no speed"),
        (
            False,
            False,
            "-",
            "no units for products narrower than float32",
            "--dtype bfloat16 and --precision int8 bring no speed",
        ),
    ],
)
def test_narrow_products_that_gain_time_here(
    bfloat16: bool, int8: bool, status: str, found: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerozoo.language.device.has_bfloat16_units", lambda: bfloat16)
    monkeypatch.setattr("zerozoo.language.device.has_int8_units", lambda: int8)
    check = doctor.check_narrow()
    assert (check.status, check.found, check.advice) == (status, found, advice)


def test_a_broken_check_is_a_failure_and_not_a_crash(monkeypatch, capsys):
    parts = [("Model, sampler", failing), ("Verifier", crashing), ("Last", lambda: iter([Check("last", WARN, "hm")]))]
    monkeypatch.setattr(doctor, "sections", lambda model, quick: parts)
    assert main(["doctor"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ok first fine" in lines
    assert "fail model mend this" in lines
    assert "fail verifier ValueError: odd" in lines
    assert "warn last hm" in lines
    assert lines[-1] == "1 ok, 1 to look at, 2 failed, 0 optional absent."


def test_a_healthy_machine_passes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["doctor", "--quick"]) == 0
    output = capsys.readouterr().out
    assert "fail " not in output
    assert "sampler, learner and transformers agree" in output
    assert f"{len(doctor.GOLDEN)} of {len(doctor.GOLDEN)} known answers judged rightly" in output
    assert "mistral" not in output  # --quick checks one family
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_ones_own(policy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    save_model(policy, tmp_path / "mine")
    checks = by_name(doctor.check_model(str(tmp_path / "mine")))
    assert checks["model"].found.startswith(f"{tmp_path / 'mine'}: llama, 0.0M parameters, context 512, ")
    assert checks["parity"].status == OK
    monkeypatch.setattr(doctor, "free_memory", lambda: 1000)
    (check,) = doctor.check_model(str(tmp_path / "mine"))
    assert check.status == FAIL
    assert "does not fit" in check.found


def test_an_unknown_model_is_a_failed_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(doctor, "sections", lambda model, quick: [("Model", lambda: doctor.check_model(model))])
    assert main(["doctor", "--model", str(tmp_path / "nowhere")]) == 1
    assert f"there is no model folder {tmp_path / 'nowhere'}." in capsys.readouterr().out


def test_a_verifier_that_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "GOLDEN", (("12", "The answer is 12.", "right"), ("12", "The answer is 13.", "right")))
    (check,) = doctor.check_verifier(quick=True)
    assert check.status == FAIL
    assert check.found.startswith("1 of 2 known answers judged rightly; 'The answer is 13.' against '12' is wrong")


def test_checks_that_never_end_are_killed(monkeypatch):
    monkeypatch.setattr(doctor, "HANG_SECONDS", 0.5)
    checks = by_name(doctor.check_verifier(quick=False))
    assert checks["known answers"].status == OK
    assert checks["tower of powers"].status == OK
    assert checks["hanging checks"].status == OK
    assert checks["hanging checks"].found.startswith("two checks that never end were killed after ")


def test_doctor_needs_no_folder(monkeypatch, tmp_path: Path):
    """The places it would write to need not exist."""
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path / "x" / "y" / "z"))
    assert by_name(doctor.check_files())["model cache"].status == OK
    assert not (tmp_path / "x").exists()
