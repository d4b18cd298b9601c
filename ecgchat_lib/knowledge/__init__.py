"""What is known of ECGs: normal limits, and a base of findings that can be searched, each with its sources."""

from ecgchat_lib.knowledge.entries import Citation, Entry, load_entries, passage, sources, summary
from ecgchat_lib.knowledge.limits import Flag, Limit, Source, cautions, flag, flag_all, load_limits

__all__ = [
    "Citation",
    "Entry",
    "Flag",
    "Limit",
    "Source",
    "cautions",
    "flag",
    "flag_all",
    "load_entries",
    "load_limits",
    "passage",
    "sources",
    "summary",
]
