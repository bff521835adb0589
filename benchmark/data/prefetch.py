"""What will be asked for next, made in a thread while the caller is busy with what it has."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The values of `make`, a function of its key alone, one of them made ahead of its use.

    Whatever was begun, `take` gives and raises what `make` does; so nothing of this is state.
    """

    def __init__(self, make: Callable[[int], T]):
        self.make = make
        self._thread: ThreadPoolExecutor | None = None
        self._begun: tuple[int, Future[T]] | None = None

    def begin(self, key: int) -> None:
        """Have the thread make what is taken next, if the caller is right about its key."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "ahead")
        self._begun = key, self._thread.submit(self.make, key)

    def take(self, key: int) -> T:
        """make(key); what it raised in the thread is raised here, with its own traceback."""
        begun, self._begun = self._begun, None
        if begun is None or begun[0] != key:
            return self.make(key)
        return begun[1].result()

    def close(self) -> None:
        """End the thread, and wait for it; to begin again starts another."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._begun = None
