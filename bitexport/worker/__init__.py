"""Lends this machine to a program elsewhere: computes some of its model's layers, on our libraries."""

from __future__ import annotations

from bitexport.worker.server import Event, Worker, worker

__all__ = ["Event", "Worker", "worker"]
