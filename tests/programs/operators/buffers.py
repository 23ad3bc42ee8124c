"""Buffers that the forward reads and writes, in any order: averages, queues, counters."""

from __future__ import annotations

from tests.programs.builder import Builder, Operator
from tests.programs.program import COLUMNS, ROWS

QUEUE = f"torch.randn({ROWS}, {COLUMNS}, dtype=DTYPE)"
AVERAGE = f"torch.zeros({COLUMNS}, dtype=DTYPE)"
SPREAD = f"torch.ones({COLUMNS}, dtype=DTYPE)"
COUNTER = "torch.zeros((), dtype=torch.int64)"


def _like_queue(b: Builder) -> str:
    return b.value(lambda t: t.shape == (ROWS, COLUMNS) and t.dtype == b.dtype)


def _wide(b: Builder) -> str:
    return b.value(lambda t: t.dim() == 2 and t.shape[1] == COLUMNS and t.dtype == b.dtype)


def _read(b: Builder) -> str:
    x = _like_queue(b)
    return f"{x} * {b.buffer(QUEUE)}"


def _logits(b: Builder) -> str:
    x = _wide(b)
    return f"{x} @ {b.buffer(QUEUE)}.t()"


def _clone(b: Builder) -> str:
    return f"{b.buffer(QUEUE)}.clone()"


def _detached_copy(b: Builder) -> str:
    return f"{b.buffer(QUEUE)}.clone().detach() * {b.parameter(COLUMNS)}"


def _alias(b: Builder) -> str:
    return b.buffer(QUEUE)


def _view(b: Builder) -> str:
    return f"{b.buffer(QUEUE)}[{b.number(2)}:]"


def _transposed(b: Builder) -> str:
    return f"{b.buffer(QUEUE)}.t()"


def _moving_average(b: Builder) -> None:
    x = _like_queue(b)
    b.do(f"{b.buffer(QUEUE)}.mul_(0.9).add_({x}.detach(), alpha=0.1)")


def _lerp(b: Builder) -> None:
    x = _wide(b)
    b.do(f"{b.buffer(AVERAGE)}.lerp_({x}.detach().mean(0), 0.25)")


def _average_read(b: Builder) -> str:
    return f"{_wide(b)} - {b.buffer(AVERAGE)}"


def _enqueue(b: Builder) -> None:
    x = _like_queue(b)
    i = b.index(lambda t: t.dim() == 1)
    queue = b.buffer(QUEUE)
    b.do(f"{queue}.index_copy_(0, {i}[:1] % {ROWS}, {x}[:1].detach())")


def _ring(b: Builder) -> None:
    """One row, at a pointer that goes round."""
    x = _like_queue(b)
    queue, pointer = b.buffer(QUEUE), b.buffer(COUNTER)
    b.do(f"{queue}[{pointer} % {ROWS}] = {x}[0].detach()", f"{pointer}.add_(1)")


def _overwrite(b: Builder) -> None:
    x = _like_queue(b)
    b.do(f"{b.buffer(QUEUE)}.copy_({x}.detach())")


def _write_slice(b: Builder) -> None:
    x = _like_queue(b)
    b.do(f"{b.buffer(QUEUE)}[1:3] = {x}[0:2].detach()")


def _shift(b: Builder) -> None:
    """All rows move by one, and the first is new."""
    x, queue = _like_queue(b), b.buffer(QUEUE)
    b.do(f"{queue}.copy_(torch.cat([{x}[:1].detach(), {queue}[:-1]]))")


def _batch_norm(b: Builder) -> str:
    m = b.value(
        lambda t: t.dim() == 2 and t.shape[0] > 1 and t.shape[1] == COLUMNS and t.dtype == b.dtype
    )
    mean, spread = b.buffer(AVERAGE), b.buffer(SPREAD)
    weights = f"{b.parameter(COLUMNS)}, {b.parameter(COLUMNS)}"
    b.do(f"{b.buffer(COUNTER)}.add_(1)")
    return f"F.batch_norm({m}, {mean}, {spread}, {weights}, training=True, momentum=0.2)"


def _batch_norm_images(b: Builder) -> str:
    m = b.value(lambda t: t.shape == (ROWS, COLUMNS) and t.dtype == b.dtype)
    mean, spread = b.buffer(AVERAGE), b.buffer(SPREAD)
    images = f"{m}.t()[None, :, :, None].expand(2, -1, -1, 2)"
    return f"F.batch_norm({images}, {mean}, {spread}, training=True)[0, :, :, 0]"


def _normalised(b: Builder) -> str:
    m = _wide(b)
    return f"F.batch_norm({m}, {b.buffer(AVERAGE)}, {b.buffer(SPREAD)}, training=False)"


def _counted(b: Builder) -> str:
    return f"{b.value(lambda t: t.dtype == b.dtype)} / (1 + {b.buffer(COUNTER)})"


def _count(b: Builder) -> None:
    b.do(f"{b.buffer(COUNTER)}.add_(1)")


def _codebook(b: Builder) -> str:
    """The nearest row of a buffer, straight through, and the row moved there."""
    x, book = _like_queue(b), b.buffer(QUEUE)
    (near,) = b.emit(f"({x}.detach() @ {book}.t()).argmax(1)")
    (chosen,) = b.emit(f"{book}[{near}]")
    b.do(f"{book}.index_add_(0, {near}, 0.1 * ({x}.detach() - {chosen}))")
    return f"{x} + ({chosen} - {x}).detach()"


def _new_queue(b: Builder) -> str:
    return f"{_like_queue(b)} + {b.buffer(QUEUE, new=True)}"


OPERATORS: list[tuple[str, Operator]] = [
    ("buffer read", _read),
    ("buffer logits", _logits),
    ("buffer cloned", _clone),
    ("buffer copied", _detached_copy),
    ("buffer alias", _alias),
    ("buffer view", _view),
    ("buffer transposed", _transposed),
    ("moving average", _moving_average),
    ("lerp", _lerp),
    ("average read", _average_read),
    ("enqueue", _enqueue),
    ("ring", _ring),
    ("buffer overwritten", _overwrite),
    ("buffer slice written", _write_slice),
    ("buffer shifted", _shift),
    ("batch_norm", _batch_norm),
    ("batch_norm of images", _batch_norm_images),
    ("batch_norm evaluated", _normalised),
    ("counted", _counted),
    ("count", _count),
    ("codebook", _codebook),
    ("buffer new", _new_queue),
]
