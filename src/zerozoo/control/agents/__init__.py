"""Agents, one family a file: what is learned and from which loss, in the order of the paper.

    offline             BC, TD3BC, ReBRAC, IQL, XQL, FDVL (with ReCOIL), CQL (with Cal-QL), DecisionTransformer
    diffusion policies  DiffusionBC, IDQL, FISOR
    online              SAC, TD3, DQN (off-policy), PPO (on-policy)
    online with data    RLPD

Each reads its settings from the recipe's config by name; none has a default of its own for what papers tune (trap 19).
"""

from zerozoo.control.agents.bc import BC
from zerozoo.control.agents.cql import CQL
from zerozoo.control.agents.decision_transformer import DecisionTransformer
from zerozoo.control.agents.diffusion import IDQL, DiffusionBC
from zerozoo.control.agents.dqn import DQN
from zerozoo.control.agents.dual import FDVL, ReCOIL
from zerozoo.control.agents.fisor import FISOR
from zerozoo.control.agents.iql import IQL, XQL
from zerozoo.control.agents.ppo import PPO
from zerozoo.control.agents.sac import RLPD, SAC
from zerozoo.control.agents.td3 import TD3, TD3BC, ReBRAC

__all__ = [
    "BC",
    "CQL",
    "DQN",
    "FDVL",
    "FISOR",
    "IDQL",
    "IQL",
    "PPO",
    "RLPD",
    "SAC",
    "TD3",
    "TD3BC",
    "XQL",
    "DecisionTransformer",
    "DiffusionBC",
    "ReBRAC",
    "ReCOIL",
]
