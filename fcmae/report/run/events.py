"""What befell a run, in words."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from fcmae.machine import describe_machine
from fcmae.report.run.record import Event, RunRecord

_NUMBERS_ONLY = ("train", "eval", "diversity", "reconstruction")


def _started(event: Event) -> str:
    where = f"on {event.get('devices', 1)} x {event.get('device', '?')}"
    if "time" in event:
        where += f" at {datetime.fromisoformat(event['time']):%Y-%m-%d %H:%M} UTC"
    resumed = event.get("resumed")
    return f"started {where}" if resumed is None else f"resumed from {resumed}, {where}"


def _ended(event: Event) -> str:
    return f"all steps done, {event['seconds']:,.0f} s after the last start"


_WORDS: dict[str, tuple[str, Callable[[Event], str]]] = {
    "start": ("start", _started),
    "end": ("end", _ended),
    "stopped": ("stop", lambda event: f"saved and left on {event['request']}"),
    "other_batches": ("other batches", lambda event: event["change"]),
    "refused_checkpoint": ("refused checkpoint", lambda event: event["reason"]),
    "left_out": ("annotations left out", lambda event: "; ".join(event["lines"])),
    "bad_image": ("unreadable image", lambda event: event["name"]),
    "skipped_step": ("skipped step", lambda event: f"not finite in {event['first']}"),
    "collapse": (
        "collapse",
        lambda event: f"{event['of']} is {event['value']:.3g}, at most its bound {event['bound']:.3g}",
    ),
    "non_finite": ("not finite", lambda event: f"expected {event['expected']}; first in {event['first']}"),
    "process_lost": ("lost process", lambda event: event["reason"]),
}
"""Kind of event -> what the page calls it, and its words."""


def events_of(run: RunRecord) -> list[tuple[int, str, str]]:
    """All that happened besides training: (step, kind, words), in the order of the log."""
    return [(event["step"], *_describe(event)) for event in run.events if event["event"] not in _NUMBERS_ONLY]


def _describe(event: Event) -> tuple[str, str]:
    if event["event"] in _WORDS:
        kind, words = _WORDS[event["event"]]
        text = words(event)
    else:  # of a newer version, or of another kind of training
        kind = event["event"].replace("_", " ")
        known = ("event", "step", "rank")
        text = ", ".join(f"{name} {value}" for name, value in event.items() if name not in known)
    return kind, f"process {event['rank']}: {text}" if "rank" in event else text


def counts(run: RunRecord) -> dict[str, int]:
    """How often something went another way than planned, by what the page calls it."""
    found = Counter(kind for _, kind, _ in events_of(run))
    resumes = sum(event.get("resumed") is not None for event in run.of("start"))
    del found["start"], found["end"]
    return {"resume": resumes, **found} if resumes else dict(found)


def outcome(run: RunRecord) -> tuple[str, str]:
    """(a sentence on how the run stands, the notice's tone)."""
    ending, steps = run.ending, run.steps
    if ending is None:
        return f"The log ends at step {run.step:,} of {steps:,}: the run goes on, or was killed.", "plain"
    if ending["event"] == "end":
        collapses = run.of("collapse")
        if collapses:
            return f"All {steps:,} steps done, but features collapsed: {_describe(collapses[-1])[1]}.", "bad"
        return f"All {steps:,} steps done.", "good"
    if ending["event"] == "stopped":
        return (
            f"Stopped by {ending['request']} after step {ending['step']:,} of {steps:,}; the same command "
            "goes on.",
            "plain",
        )
    return f"Ended at step {ending['step']:,} of {steps:,}: {_describe(ending)[1]}.", "bad"


def places(run: RunRecord) -> Sequence[str]:
    """What the run was measured on: a line for each start that differs from the others."""
    lines = []
    for event in run.of("start"):
        devices = f"{event.get('devices', 1)} x {event.get('device', '?')}"
        known = "torch" in event and "processor" in event
        lines.append(f"{devices}: {describe_machine(event) if known else 'not recorded by that version'}")
    return list(dict.fromkeys(lines))
