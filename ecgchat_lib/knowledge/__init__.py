"""What is known of ECGs: normal limits with their sources."""

from ecgchat_lib.knowledge.limits import Flag, Limit, Source, cautions, flag, flag_all, load_limits

__all__ = ["Flag", "Limit", "Source", "cautions", "flag", "flag_all", "load_limits"]
