"""Exported folders onto devices, over ssh: what changes there is done by the folder's own ``install.sh``.

device      a device as commands over ssh: run one, copy a folder
roll_out    one folder onto several devices, each by itself, and what became of each
"""

from .roll_out import Outcome, Plan, roll_out

__all__ = ["Outcome", "Plan", "roll_out"]
