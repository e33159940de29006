"""What a run tells: log.jsonl, dashboards, and lines on the screen."""

from fcmae.training.engine.logs.boards import TensorBoard, open_boards, require_loggers
from fcmae.training.engine.logs.log import RunLog
from fcmae.training.engine.logs.pace import AnyBatch, Pace, peak_memory_mb

__all__ = ["AnyBatch", "Pace", "RunLog", "TensorBoard", "open_boards", "peak_memory_mb", "require_loggers"]
