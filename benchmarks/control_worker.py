"""One system of benchmarks/control.py in a process of its own: makes it, says "ready", then times updates on demand.

    python benchmarks/control_worker.py SYSTEM ALGORITHM WIDTH

SYSTEM is zerozoo, plain, d3rlpy or stable-baselines3; each needs only its own packages. Every number on standard input
asks for so many updates and is answered with the seconds that they took, the drawing of their batches included. All
systems learn from the same random data: 17-dimensional observations, 6-dimensional actions, episodes of 200 steps.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
from collections.abc import Callable

import numpy as np

OBSERVATION, ACTION, TRANSITIONS, EPISODE, BATCH = 17, 6, 20_000, 200, 256
DISCOUNT = 0.99
SAMPLED_ACTIONS = 10  # of each kind in CQL's penalty
Data = dict[str, np.ndarray]


def random_data() -> Data:
    """Recorded steps that nobody could learn anything from; the last of an episode is a true end."""
    generator = np.random.Generator(np.random.PCG64(0))
    terminal = np.arange(1, TRANSITIONS + 1) % EPISODE == 0
    return {
        "obs": generator.standard_normal((TRANSITIONS, OBSERVATION), dtype=np.float32),
        "action": generator.uniform(-0.99, 0.99, (TRANSITIONS, ACTION)).astype(np.float32),
        "reward": generator.standard_normal(TRANSITIONS, dtype=np.float32),
        "terminal": terminal.astype(np.float32),
        "next_obs": generator.standard_normal((TRANSITIONS, OBSERVATION), dtype=np.float32),
    }


def zerozoo(algorithm: str, width: int, data: Data) -> Callable[[int], None]:
    import torch

    from zerozoo.control import agents
    from zerozoo.control.episodes import Episodes
    from zerozoo.control.spec import Spec
    from zerozoo.control.views import transitions

    name = {"iql": "iql", "td3-bc": "td3_bc", "sac": "sac", "cql": "cql"}[algorithm]
    config_class = importlib.import_module(f"zerozoo.recipes.baselines.{name}").Config
    kind = {"iql": agents.IQL, "td3-bc": agents.TD3BC, "sac": agents.SAC, "cql": agents.CQL}[algorithm]
    agent = kind(
        Spec((OBSERVATION,), ACTION, False), config_class(hidden=(width, width)), torch.Generator().manual_seed(0)
    )
    episodes = []
    for start in range(0, TRANSITIONS, EPISODE):
        rows = slice(start, start + EPISODE)
        obs = np.concatenate([data["obs"][rows], data["next_obs"][rows][-1:]])
        terminated = data["terminal"][rows] == 1
        episode = {"action": data["action"][rows], "reward": data["reward"][rows], "terminated": terminated}
        episodes.append({**episode, "obs": obs, "truncated": np.zeros_like(terminated)})
    sampler = transitions(DISCOUNT)(Episodes.from_list(episodes))
    stream = torch.Generator().manual_seed(1)

    def update(times: int) -> None:
        for _ in range(times):
            agent.update(sampler.sample(BATCH, stream))

    return update


def plain(algorithm: str, width: int, data: Data) -> Callable[[int], None]:
    import torch

    from control_reference import REFERENCES

    agent = REFERENCES[algorithm](OBSERVATION, ACTION, width)
    tensors = {name: torch.from_numpy(values) for name, values in data.items()}
    torch.manual_seed(1)

    def update(times: int) -> None:
        for _ in range(times):
            index = torch.randint(TRANSITIONS, (BATCH,))
            agent.update({name: values[index] for name, values in tensors.items()})

    return update


def d3rlpy(algorithm: str, width: int, data: Data) -> Callable[[int], None]:
    import d3rlpy as library

    encoder = library.models.VectorEncoderFactory([width, width])
    encoders = {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
    if algorithm == "iql":
        encoders["value_encoder_factory"] = encoder
    kinds = {"iql": "IQLConfig", "td3-bc": "TD3PlusBCConfig", "sac": "SACConfig", "cql": "CQLConfig"}
    extra = {"n_action_samples": SAMPLED_ACTIONS, "alpha_learning_rate": 0.0} if algorithm == "cql" else {}
    config = getattr(library.algos, kinds[algorithm])(batch_size=BATCH, **encoders, **extra)
    agent = config.create(device="cpu")
    dataset = library.dataset.MDPDataset(data["obs"], data["action"], data["reward"], data["terminal"])
    agent.build_with_dataset(dataset)

    def update(times: int) -> None:
        for _ in range(times):
            agent.update(dataset.sample_transition_batch(BATCH))

    return update


def stable_baselines3(algorithm: str, width: int, data: Data) -> Callable[[int], None]:
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    class Still(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(OBSERVATION, np.float32), {}

        def step(self, action):
            return np.zeros(OBSERVATION, np.float32), 0.0, False, False, {}

    agent = {"sac": SAC}[algorithm](
        "MlpPolicy", Still(), device="cpu", policy_kwargs={"net_arch": [width, width]}, buffer_size=TRANSITIONS
    )
    agent.set_logger(configure(None, []))
    for i in range(TRANSITIONS):
        agent.replay_buffer.add(
            *(data[name][i][None] for name in ("obs", "next_obs", "action", "reward", "terminal")), [{}]
        )

    def update(times: int) -> None:
        agent.train(gradient_steps=times, batch_size=BATCH)

    return update


SYSTEMS = {"zerozoo": zerozoo, "plain": plain, "d3rlpy": d3rlpy, "stable-baselines3": stable_baselines3}


def main() -> None:
    """See the module's text."""
    system, algorithm, width = sys.argv[1:]
    with contextlib.redirect_stdout(io.StringIO()):  # libraries that talk would break the protocol
        update = SYSTEMS[system](algorithm, int(width), random_data())
        update(3)
    print("ready", flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            began = time.perf_counter()
            update(int(line))
            seconds = time.perf_counter() - began
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
