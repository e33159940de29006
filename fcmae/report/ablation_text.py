"""An ablation in words and in a terminal's table."""

from statistics import mean

from fcmae.report.ablation_result import AblationResult, summarise

LABELS = {
    "loss": "loss",
    "knn": "k-NN, %",
    "probe": "probe, %",
    "lowshot_1": "1 label a class, %",
    "lowshot_2": "2 labels a class, %",
    "lowshot_5": "5 labels a class, %",
    "lowshot_1percent": "1 % of the labels, %",
    "finetune": "fine-tuned, %",
}
"""Metric -> its column's title; accuracies are shown in percent."""


def scaled(metric: str, value: float) -> float:
    """A metric as the tables show it: losses as they are, accuracies in percent."""
    return value if metric == "loss" else 100 * value


def text_table(result: AblationResult) -> str:
    """The table of the arms as text, for a terminal."""
    summaries = summarise(result)
    lines = [["arm", "seeds", *(LABELS[name] for name in result.metrics), "step, s", "peak MiB"]]
    for summary in summaries:
        cells = [
            " ± ".join(shown(name, value) for value in summary.metrics[name] if value is not None)
            if name in summary.metrics
            else "-"
            for name in result.metrics
        ]
        seconds = "-" if summary.step_seconds is None else f"{summary.step_seconds:.3f}"
        memory = "-" if summary.peak_memory_mb is None else f"{summary.peak_memory_mb:.0f}"
        lines.append([summary.arm, str(summary.seeds), *cells, seconds, memory])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    sentences = [*([agreement_text(result)] if result.agreement else []), *speed_text(result)]
    return "\n".join([*(row.rstrip() for row in rows), *sentences])


def shown(metric: str, value: float) -> str:
    """A metric as text: losses with four decimals, accuracies in percent."""
    return f"{value:.4f}" if metric == "loss" else f"{100 * value:.1f}"


def agreement_text(result: AblationResult) -> str:
    """Whether the equal arms agree, with the numbers."""
    agreement = result.agreement
    assert agreement is not None
    a, b = agreement.arms
    if agreement.holds is None:
        return f"{a} and {b} have not both run {agreement.steps} steps with the same seed yet: not compared."
    seeds = ", ".join(f"{value:.2g} (seed {seed})" for seed, value in agreement.worst.items())
    verdict = "agree" if agreement.holds else "DISAGREE"
    return (
        f"{a} and {b} {verdict} in loss over the first {agreement.steps} steps: the largest difference of a "
        f"step is {seeds}; at most {agreement.tolerance:g} was expected."
    )


def speed_text(result: AblationResult) -> list[str]:
    """The time of the equal arms beside what it should be; nothing where it was not measured."""
    speed = result.speed
    if speed is None:
        return []
    a, b = speed.arms
    seeds = ", ".join(f"{value:.3f} (seed {seed})" for seed, value in speed.ratios.items())
    flops = (
        f", and the step's arithmetic with the decoder on all cells is {speed.flops:.3f} of the other's"
        if speed.flops is not None
        else ""
    )
    return [
        f"A step of {a} takes {mean(speed.ratios.values()):.3f} of the time of {b}: {seeds}. The encoder "
        f"sees {speed.visible:.3f} of the cells{flops}."
    ]
