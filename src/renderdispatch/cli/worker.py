"""How does a process render the jobs of a home?"""

from __future__ import annotations

from contextlib import closing

import click

from renderdispatch.cli.display import note
from renderdispatch.cli.interrupts import Interrupts
from renderdispatch.cli.options import logging_options
from renderdispatch.cli.slots import backends_with_slots
from renderdispatch.messages import JobStatus
from renderdispatch.wiring import from_settings, read_settings


@click.command()
@click.option(
    "slots",
    "--jobs",
    type=click.IntRange(1, 64),
    metavar="NUMBER",
    help="How many render here at once. Default: one on each GPU, and one on the CPU.",
)
@logging_options
def worker(*, slots: int | None, quiet: bool) -> None:
    """Render the jobs of this home until Ctrl-C or SIGTERM.

    Jobs that are not finished then go back to the queue.
    """
    settings, backends = read_settings(), backends_with_slots(slots)
    with Interrupts() as interrupts, closing(from_settings(settings, worker=True, backends=backends)) as service:
        waiting = service.counts()[JobStatus.PENDING]  # a store that cannot be used is told before the threads meet it
        service.start()
        if not quiet:
            note(f"working for {settings.home}, {waiting} jobs are queued; Ctrl-C ends")
        interrupts.wait()
