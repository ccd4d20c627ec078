"""What another process may ask of a run by a file in its model folder."""

from __future__ import annotations

SNAPSHOT_REQUEST = "snapshot.request"  # with it there, the next checkpoint is kept as a snapshot
