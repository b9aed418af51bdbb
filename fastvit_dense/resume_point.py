"""What a checkpoint holds beside mmengine's own, so that a resumed run is the run it would have been."""

from typing import Any

from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .random_states import States, capture, restore


class ResumePoint(Hook):
    """Keeps the random states of all processes and the place in the epoch in checkpoints.

    A checkpoint may be saved before or after a validation (the best one), and a resumed run starts behind
    it. So a validation leaves the random states as they were: training draws the same in each case. One
    that was saved within a validation says so, for the validation to be run again.

    Attributes:
        position: place in the epoch of the checkpoint that was loaded; see ResumableEpochs.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.position: dict[str, int] = {}
        self._loaded: list[States] = []
        self._before_val: States | None = None
        self._to_save: dict[str, Any] = {}

    @property
    def validating(self) -> bool:
        """Whether a validation is running."""
        return self._before_val is not None

    def note(self, position: dict[str, int]) -> None:
        """Collect what the next checkpoint is to hold. To be called by all processes."""
        states = all_gather_object(self._before_val or capture())
        if self.validating:
            position = dict(position, validating=1)
        self._to_save = dict(random_states=states, position=position)

    def restore(self) -> str:
        """Set the random states that were loaded; returns why not, or an empty text."""
        states, self._loaded = self._loaded, []
        if not states:
            return "the checkpoint holds no random states: the run draws other numbers from here on"
        if get_rank() >= len(states):
            return f"the checkpoint is of {len(states)} processes: this one draws other numbers"
        restore(states[get_rank()])
        return ""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add it to a checkpoint."""
        checkpoint.update(self._to_save)
        self._to_save = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take it from a checkpoint."""
        self.position = checkpoint.pop("position", None) or {}
        self._loaded = checkpoint.pop("random_states", None) or []

    def before_val(self, runner: Runner) -> None:
        """Keep the random states of training."""
        self._before_val = capture()

    def after_val(self, runner: Runner) -> None:
        """Go on with them."""
        if self._before_val is not None:
            restore(self._before_val)
            self._before_val = None
