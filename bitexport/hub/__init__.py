"""Models on the hub: their names, the files of theirs that a command needs, and where a local copy came from.

``huggingface_hub`` does the work (cache, tokens, offline mode) and is imported only when a name is fetched.
"""

from __future__ import annotations

from bitexport.hub.contents import Want
from bitexport.hub.fetch import fetch
from bitexport.hub.names import HubName, hub_name
from bitexport.hub.source import HubSource, source_of

__all__ = ["HubName", "HubSource", "Want", "fetch", "hub_name", "source_of"]
