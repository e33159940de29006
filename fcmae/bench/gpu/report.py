"""Results of the GPU benchmark as tables: short for a terminal, Markdown for docs/benchmarks.md."""

from typing import Any

from fcmae.errors import InputError

NO_FIGURE = "-"
LINE = 160
"""Characters that the terminal's table gives a reason; the results hold it whole."""


def render(report: dict[str, Any]) -> str:
    """The Markdown section of a run on a GPU.

    Raises:
        InputError: the results are not those of a GPU.
    """
    device = report["device"]
    if device["type"] != "cuda":
        raise InputError(
            f"--render: expected results of a GPU, got those of {device.get('name', device['type'])}. "
            "Figures of a CPU run only show that the benchmark works."
        )
    parts = [f"### {device['name']}", _facts(report)]
    if report["steps"]:
        parts.append(markdown_table(STEP_HEADER, step_rows(report)))
    kernels = [k for k in report["kernels"] if "failed" not in k]
    if kernels:
        parts.append(markdown_table(KERNEL_HEADER, [_kernel_row(k, kernels) for k in kernels]))
    left_out = _failures(report)
    left_out += [f"{skipped['name']}: skipped, {skipped['reason']}" for skipped in report["skipped"]]
    if left_out:
        parts.append("Not measured in this run:\n\n" + "\n".join(f"- {line}" for line in left_out))
    return "\n\n".join(parts) + "\n"


def short_table(report: dict[str, Any]) -> str:
    """The results as text of few lines, printed last."""
    device = report["device"]
    name = device.get("name", device["type"])
    lines = [f"{name}, torch {device.get('torch')}, commit {device.get('commit')}"]
    if device["type"] != "cuda":
        lines.append("NOT A GPU: these figures only show that the benchmark works.")
    if rates := report["rates"]:
        lines.append(
            f"copy {rates['copy'] / 1e12:.2f} TB/s, bf16 GEMM {rates['matrix'] / 1e12:.0f} TFLOP/s, "
            f"float32 GEMM {rates['vector'] / 1e12:.1f} TFLOP/s"
        )
    lines += text_table(*_kernels_by_arm(report["kernels"]))
    lines += text_table(STEP_HEADER, step_rows(report))
    lines += [f"not measured: {line[:LINE]}" for line in _failures(report)]
    if skipped := report["skipped"]:
        lines.append(f"skipped for want of time: {', '.join(entry['name'] for entry in skipped)}")
    return "\n".join(lines)


STEP_HEADER = (
    "network, mask",
    "mode",
    "batch",
    "arm",
    "ms",
    "images/s",
    "peak GiB",
    "floor ms",
    "time / dense",
    "memory / dense",
    "time / MAE",
)


def step_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each arm of each comparison that was timed."""
    rows = []
    for case in report["steps"]:
        ratios = {(ratio["arm"], ratio["to"]): ratio for ratio in case["ratios"]}
        for name, figures in case["arms"].items():
            if "failed" in figures:
                continue
            dense, mae = ratios.get((name, "masked_dense")), ratios.get((name, "mae"))
            floor = figures.get("floor_ms")
            rows.append(
                [
                    f"{case['backbone'].removeprefix('convnextv2_')}, {case['mask_ratio']:g}",
                    "compiled" if case["compiled"] else "eager",
                    str(case["batch_size"]),
                    name,
                    f"{figures['median_ms']:.2f}",
                    f"{figures['images_per_second']:.0f}",
                    f"{figures['peak_bytes'] / 2**30:.1f}",
                    NO_FIGURE if floor is None else f"{floor:.1f}",
                    NO_FIGURE if dense is None else f"{dense['time']:.3f}",
                    NO_FIGURE if dense is None else f"{dense['memory']:.3f}",
                    NO_FIGURE if mae is None else f"{mae['time']:.3f}",
                ]
            )
    return rows


KERNEL_HEADER = ("kernel", "stage", "rows x channels", "arm", "ms", "GB/s", "of copy", "of floor", "/ cudnn")


def _kernel_row(kernel: dict[str, Any], kernels: list[dict[str, Any]]) -> list[str]:
    place = ("op", "direction", "stage")
    dense = [k for k in kernels if k["arm"] == "cudnn" and all(k[key] == kernel[key] for key in place)]
    ratio = f"{kernel['ms'] / dense[0]['ms']:.3f}" if dense and kernel["arm"] != "cudnn" else NO_FIGURE
    # Launching is in the time of what could not be captured.
    launched = kernel["uncaptured"] is not None
    return [
        f"{kernel['op']} {kernel['direction']}".strip(),
        str(kernel["stage"]),
        f"{kernel['rows']} x {kernel['channels']}",
        kernel["arm"] + _config(kernel),
        f"{kernel['ms']:.4f}" + (" (launches)" if launched else ""),
        f"{kernel['gb_per_second']:.0f}",
        f"{kernel['of_copy']:.2f}",
        f"{kernel['of_floor']:.2f}",
        ratio,
    ]


def _kernels_by_arm(kernels: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """A row for each operation, direction, stage and configuration: ms of every arm, share of the copy."""
    timed = [k for k in kernels if "failed" not in k]
    arms = list(dict.fromkeys(k["arm"] for k in timed))
    rows: dict[str, list[str]] = {}
    for kernel in timed:
        name = f"{kernel['op']} {kernel['direction']} {kernel['stage']}{_config(kernel)}"
        row = rows.setdefault(name, [name, *[NO_FIGURE] * len(arms)])
        mark = "" if kernel["uncaptured"] is None else "*"
        row[1 + arms.index(kernel["arm"])] = f"{kernel['ms']:.4f}{mark} {kernel['of_copy']:.2f}"
    return ("ms, of copy (*: launches in it)", *arms), list(rows.values())


def _config(kernel: dict[str, Any]) -> str:
    """The values of a swept configuration."""
    return "".join(f" {value}" for value in (kernel.get("config") or {}).values())


def _facts(report: dict[str, Any]) -> str:
    device, rates = report["device"], report["rates"]
    versions = ", ".join(
        f"{name} {device.get(name)}" for name in ("driver", "cuda", "torch", "triton", "timm", "python")
    )
    text = f"Commit {device['commit']}, {device['date']}; {versions}."
    if rates:
        text += (
            f" Measured in the same run: copy {rates['copy'] / 1e12:.2f} TB/s (read and written), bf16 GEMM "
            f"{rates['matrix'] / 1e12:.0f} TFLOP/s, float32 GEMM {rates['vector'] / 1e12:.1f} TFLOP/s."
        )
    return text


def _failures(report: dict[str, Any]) -> list[str]:
    """What failed, with the reason."""
    lines = [
        f"{p['op']} on {p['backend']}: parity failed: {p['failed']}" for p in report["parity"] if p["failed"]
    ]
    if report["kernels_stopped"]:
        lines.append(f"further kernels: {report['kernels_stopped']}")
    for kernel in report["kernels"]:
        if "failed" in kernel:
            place = f"{kernel['op']} {kernel['direction']}, stage {kernel['stage']}, {kernel['arm']}"
            lines.append(f"{place}: {kernel['failed']}")
    for case in report["steps"]:
        for name, figures in case["arms"].items():
            if "failed" in figures:
                lines.append(f"{case['name']}, {name}: {figures['failed']}")
        lines += [f"{case['name']}: {reason}" for reason in case["out_of_memory"]]
    return lines


def markdown_table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text_table(header: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Lines of aligned columns; none without rows."""
    if not rows:
        return []
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *rows]
    ]
