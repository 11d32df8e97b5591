"""The guardian of a worker process of our own: stops it quietly however busy the machine is."""

from __future__ import annotations

from contextlib import suppress

from distributed import Nanny, Status


class SteadyNanny(Nanny):  # type: ignore[misc]  # distributed is untyped
    """A nanny whose `close` always ends, with its process gone.

    Distributed's own gives a process five seconds: on a busy machine that raises TimeoutError after the process
    was killed but before its end was seen, leaves the nanny half closed, and every later `close` waits for ever.
    """

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
        """Stop the process: asked first, then killed; one that is still starting is killed at once."""
        process = self.process
        if process is not None and process.status == Status.starting and process.process is not None:
            await process.process.kill()
            await process.running.wait()  # set when its start was given up; closing earlier would cancel that, loudly
        with suppress(TimeoutError):
            await super().kill(timeout=timeout, reason=reason)
            return
        # It was killed; the second call waits until its end is seen.
        await super().kill(timeout=timeout, reason=reason)
