"""How a job is spread: one process, the ranks of torchrun, or the tasks of a Ray cluster.

Whoever has work to spread says what a shard is and what is to be made of one: ``collect``, pure, which takes any number of
shards and yields one result for each. What puts the results together does not depend on which process made them. Nothing here
knows what is collected.
"""

from moescope.cluster.choose import engine_of
from moescope.cluster.engine import LOCAL, Engine, ProcessLost
from moescope.cluster.ranks import rank_device, ranks
from moescope.cluster.share import share

__all__ = ["LOCAL", "Engine", "ProcessLost", "engine_of", "rank_device", "ranks", "share"]
