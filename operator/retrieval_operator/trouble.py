"""What a pass still does after a port said no: rules (1) and (3) of the controller, as one small state."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrieval_operator.domain.plan import (
    Action,
    CreateStack,
    EmitEvent,
    ScaleStack,
    SetFinalizer,
    StopTraffic,
    SwitchTraffic,
)
from retrieval_operator.perform import REGISTRY_ACTIONS
from retrieval_operator.ports import Rejected, Retryable

# What later actions of a pass rely on: what the finalizer is there for, what is said and recorded of a switch.
_RELIED_ON = (SetFinalizer, SwitchTraffic, StopTraffic)
# What serves is made and scaled whatever else is not to be had.
_SERVING = (CreateStack, ScaleStack)


@dataclass(frozen=True)
class Trouble:
    """What a port said first that was no success, and of which action.

    `of_serving`: some action that failed was a way to serve: the champion's stack made or scaled, the traffic switched.
    """

    error: Retryable | Rejected
    action: Action
    of_serving: bool

    @property
    def of_registry(self) -> bool:
        return isinstance(self.action, REGISTRY_ACTIONS)


class Troubles:
    """Those of one pass, whose actions are asked about and told in their order. `first` is None while all went well.

    `champion` is the stack that serves, "" before there is one.
    """

    def __init__(self, champion: str) -> None:
        self.first: Trouble | None = None
        self._champion = champion
        self._registry_fails = False
        self._only_serving = False
        self._was_done = True  # the last action that is no event
        self._may_tell = True

    def allow(self, action: Action) -> bool:
        """Whether to perform the action now.

        Not another one of a registry that fails. After what a port cannot do now, and after a refusal that later
        actions rely on, only what serves. Of what was not done no event tells; what has happened is told.
        """
        if isinstance(action, EmitEvent):
            return self._may_tell and (self._was_done or not action.of_action)
        fails = self._registry_fails and isinstance(action, REGISTRY_ACTIONS)
        self._was_done = not fails and (isinstance(action, _SERVING) or not self._only_serving)
        return self._was_done

    def note(self, action: Action, error: Retryable | Rejected) -> None:
        """The action was not performed, since a port said so."""
        of_registry = isinstance(action, REGISTRY_ACTIONS)
        of_serving = self._is_of_serving(action)
        if self.first is None:
            self.first = Trouble(error, action, of_serving)
        elif of_serving:
            self.first = replace(self.first, of_serving=True)
        if isinstance(action, EmitEvent):
            self._may_tell = not isinstance(error, Retryable)  # each would wait for the same answer
        else:
            self._was_done = False
        if of_registry:
            self._registry_fails = True
        elif isinstance(error, Retryable) or isinstance(action, _RELIED_ON):
            self._only_serving = True

    def _is_of_serving(self, action: Action) -> bool:
        if isinstance(action, CreateStack):
            return action.record.stack == self._champion
        if isinstance(action, ScaleStack):
            return action.stack == self._champion
        return isinstance(action, SwitchTraffic)
