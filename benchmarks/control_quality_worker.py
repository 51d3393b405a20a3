"""d3rlpy's side of benchmarks/control_quality.py: learns from a file and writes its greedy policy as TorchScript.

    python benchmarks/control_quality_worker.py FILE.npz POLICY.pt SETTINGS-AS-JSON

Needs d3rlpy alone. Settings: algorithm, width, batch, learning_rate, steps, seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

import d3rlpy
import numpy as np

ALGORITHMS = {"iql": "IQLConfig", "td3-bc": "TD3PlusBCConfig"}


def main() -> None:
    """See the module's text."""
    source, target, text = sys.argv[1:]
    settings = json.loads(text)
    data = np.load(source)
    d3rlpy.seed(settings["seed"])
    encoder = d3rlpy.models.VectorEncoderFactory([settings["width"]] * 2)
    options = {
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": encoder,
        "actor_learning_rate": settings["learning_rate"],
        "critic_learning_rate": settings["learning_rate"],
        "batch_size": settings["batch"],
        "observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(),
    }
    if settings["algorithm"] == "iql":
        options["value_encoder_factory"] = encoder
    with contextlib.redirect_stdout(io.StringIO()):
        agent = getattr(d3rlpy.algos, ALGORITHMS[settings["algorithm"]])(**options).create(device="cpu")
        dataset = d3rlpy.dataset.MDPDataset(
            data["obs"], data["action"], data["reward"], data["terminal"], timeouts=data["timeout"]
        )
        agent.fit(
            dataset,
            n_steps=settings["steps"],
            n_steps_per_epoch=settings["steps"],
            show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        )
        agent.save_policy(target)


if __name__ == "__main__":
    main()
