"""What all tests share."""

import os

# Tiny models are fastest on one thread, and two threads that share a busy core wait for each other. Set before torch is
# imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator  # noqa: E402
from contextlib import suppress  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

with suppress(ImportError):  # the environment of vLLM is without it
    from hypothesis import settings

    # How long an example takes is no property of the code.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The same sums in the same order on every machine."""
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)  # training sets it for the whole process


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random model of few characters, which is right now and then."""
    from zerozoo.language.families import tiny_model
    from zerozoo.language.models import save_model

    folder = tmp_path_factory.mktemp("model") / "digits"
    save_model(tiny_model("llama", vocabulary="0123 ", hidden=16, heads=2, kv_heads=1), folder)
    return str(folder)
