"""Processes that train one model together: who they are, and what they tell each other."""

from thermokron.host.kfac.distributed.ranks import Exchange, Ranks, check_alike, ranks_of

__all__ = ["Exchange", "Ranks", "check_alike", "ranks_of"]
