"""Products of the decoder: the same numbers in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zerozoo.language import decoder as module
from zerozoo.language.decoder import OwnDecoder
from zerozoo.language.families import tiny_model
from zerozoo.language.products import OwnWeights, make_products, plain_projection, weights_first

MKL = torch.backends.mkl.is_available()


def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(48, 32), nn.Linear(48, 80, bias=False)]


@pytest.fixture
def rows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.language.products.weights_first", lambda: False)


@pytest.mark.usefixtures("rows_first")
@torch.no_grad()
def test_weights_laid_out_anew_give_the_same_products() -> None:
    modules = layers()
    products = make_products(modules, None, plain_projection, "0")
    assert isinstance(products, OwnWeights)
    generator = torch.Generator().manual_seed(1)
    for prepared in (7, 20):
        products.prepare(prepared)
        assert bool(products.packed) is MKL
        for rows in (7, 20):  # also those that it was not prepared for
            inputs = torch.randn((rows, 48), generator=generator)
            for one, linear in zip(products(inputs), modules, strict=True):
                exact = inputs.double() @ linear.weight.double().T
                exact = exact if linear.bias is None else exact + linear.bias.double()
                torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-5)
    wide = torch.randn((20, 3, 48), generator=generator)  # a prompt pass, whatever its first size is
    for one, linear in zip(products(wide), modules, strict=True):
        torch.testing.assert_close(one, linear(wide))


@torch.no_grad()
def test_products_by_columns_are_the_same_and_need_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.language.products.weights_first", lambda: True)
    modules = layers()
    products = make_products(modules, None, plain_projection, "0")
    assert products.by_columns
    products.prepare(20)
    assert not products.packed
    rows = torch.randn((20, 48), generator=torch.Generator().manual_seed(1))
    for inputs in (rows, rows.t().contiguous().t(), rows.view(4, 5, 48)):
        for one, linear in zip(products(inputs), modules, strict=True):
            torch.testing.assert_close(one, linear(inputs))
            assert one.stride() == ((1, 20) if inputs.ndim == 2 else linear(inputs).stride())
    assert not OwnWeights([torch.ones(4, 4, dtype=torch.float64)], [None]).by_columns


def test_the_order_of_factors_depends_on_the_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, first in (("AVX2", MKL), ("AVX512", False), ("DEFAULT", False)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        assert weights_first.__wrapped__() is first


@pytest.mark.usefixtures("rows_first")
def test_other_precisions_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    products = OwnWeights([torch.ones(4, 4, dtype=torch.bfloat16)], [None])
    products.prepare(3)
    assert not products.packed
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")  # --dtype bfloat16 on a CPU
    products = OwnWeights([torch.ones(4, 4)], [None])
    products.prepare(3)
    assert not products.packed  # MKL's own would not round the factors


@torch.no_grad()
def test_a_product_for_several_layers_is_handed_out_in_parts() -> None:
    modules, inputs = layers(), torch.ones(2, 48)
    joined = make_products(modules, torch.float64, plain_projection, "0")
    for one, linear in zip(joined(inputs), modules, strict=True):  # the second has no bias
        torch.testing.assert_close(one, linear.double()(inputs.double()))


@torch.no_grad()
def test_the_decoder_prepares_for_its_rows_while_there_is_far_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(OwnWeights, "prepare", lambda self, rows: calls.append(rows))
    model = tiny_model("llama").model
    decoder = OwnDecoder(model, capacity=4 + module.PREPARE_FROM + 1)
    decoder.read([[1, 2, 3, 4]], [[0, 1, 2]])
    tokens = torch.zeros(3, dtype=torch.int64)
    decoder.advance(tokens)
    assert set(calls) == {3}
    first = len(calls)
    decoder.advance(tokens)
    assert len(calls) == first  # once for the same rows
    decoder.keep([0, 2])
    decoder.advance(tokens[:2])
    assert len(calls) == first  # too few tokens are left: not worth it
    monkeypatch.setattr(module, "PREPARE_BYTES", 1000)
    large = OwnDecoder(model, capacity=4 + module.PREPARE_FROM + 1)
    large.read([[1, 2, 3, 4]], [[0, 1, 2]])
    large.advance(tokens)
    assert len(calls) == first  # a copy would take too much memory
