"""Maps over rows: lazy, bounded, resumable; errors are values in the row."""

from chatfn.pipeline.maps import amap_chat, map_chat

__all__ = ["amap_chat", "map_chat"]
