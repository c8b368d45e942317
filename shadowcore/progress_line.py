"""Show one line of progress while Snakemake runs a study: the number of finished jobs and the time left."""

import logging
import sys
import time
from typing import TextIO

from shadowcore.jobs import Jobs
from shadowcore.states import counted, states, summary

PAUSE = 10.0  # seconds between two lines in a file, where a line cannot be overwritten
# Snakemake's messages about single jobs: events of its logger, and lines that are not events
EVENTS = {"job_info", "group_info", "job_started", "job_finished", "shellcmd", "resources_info", "progress"}
LINES = ("Select jobs to execute", "Execute ")


class ProgressLine(logging.Handler):
    """A handler for Snakemake's logger that updates the line at events of progress."""

    def __init__(self, jobs: Jobs, out: TextIO = sys.stderr):
        super().__init__()
        self.jobs, self.out, self.written = jobs, out, 0.0
        self.together = 1  # most jobs that ran at once; the present number is too low between two jobs

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, at most once a second on a terminal and every PAUSE seconds elsewhere."""
        now, terminal = time.time(), self.out.isatty()
        if getattr(record, "event", None) != "progress" or now - self.written < (1 if terminal else PAUSE):
            return
        self.written = now
        jobs = states(self.jobs, now)
        self.together = max(self.together, counted(jobs)["running"])
        line = summary(jobs, self.together)
        self.out.write(f"\r{line}\033[K" if terminal else f"{time.strftime('%H:%M:%S')}  {line}\n")
        self.out.flush()

    def close(self) -> None:
        """End the line."""
        if self.written and self.out.isatty():
            self.out.write("\n")
        self.written = 0.0
        super().close()


def install(logger: logging.Logger, jobs: Jobs) -> ProgressLine:
    """Add the line to Snakemake's logger and hide messages about single jobs; Snakemake's log file keeps them."""
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_of_the_run)
    logger.addHandler(line := ProgressLine(jobs))
    return line


def _is_of_the_run(record: logging.LogRecord) -> bool:
    event = getattr(record, "event", None)
    return event not in EVENTS if event else not record.getMessage().startswith(LINES)
