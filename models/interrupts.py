"""Ctrl-C that lets the work in hand be finished and saved; a second one does not wait."""

import signal
from types import FrameType, TracebackType


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is noted in `received` instead of acting.

    A second one acts as if this were not here: Ctrl-C raises KeyboardInterrupt at once. A signal
    that was ignored stays so: a shell has its background jobs ignore Ctrl-C.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
