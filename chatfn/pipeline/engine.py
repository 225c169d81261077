"""The engine of a map: one thread that drives the flows of all rows over a driver of transports.

All work on rows, the writing of their journal too, is done by that thread, so that it contends with no other, and what
many rows want at the same time (``Together``) is done at once.  A row that waits for its retry is put aside until it
is due, and leaves its place in flight to another.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from chatfn.middleware import Call, Flow, Sleep, Together, WoundDown, perform
from chatfn.pipeline.drivers import THREAD
from chatfn.transports import Driver

JOINED = 5.0  # seconds that the thread is waited for when its map is over
MOST_BEGUN = 64  # tasks begun in one turn: what they come to goes out before more are begun

Begin = Callable[[Any], Flow]
Deliver = Callable[[list[tuple[Any, Any]]], None]
Landed = tuple[Any, Flow, Any, Exception | None]  # a task, its flow, an answer, an exception in place of one


class Pool(NamedTuple):
    """Where rows run."""

    submit: Callable[[Any], None]
    turn: Callable[[], None] | None  # do what can be done now; None: a thread does
    waiting: Callable[[], int]  # how many tasks are put aside until they are due
    finish: Callable[[], None]  # send nothing more: what is in flight ends, what waits ends as it is
    close: Callable[[], None]  # the same, and what is in flight is closed


def pool_of(  # noqa: C901  # small functions that share one state
    begin: Begin, driver: Driver, deliver: Deliver, aside: Callable[[], None], size: int, *, threaded: bool = True
) -> Pool:
    """A pool with at most ``size`` requests in flight.

    ``begin``: a task's flow.  ``deliver``: called with pairs of a task and what came of it: a response map, or an
    exception; ``WoundDown`` for one that was to go on when nothing more was to be sent.  ``aside``: called when a task
    is put aside.  Without a thread of its own it works when its ``turn`` is called.
    """
    backlog: deque[Any] = deque()  # tasks that are not begun: what is begun may be written down as on its way
    ready: deque[Landed] = deque()
    unsent: deque[tuple[Any, Flow, Any]] = deque()  # requests that wait for a place in flight
    due: list[tuple[float, int, Any, Flow]] = []  # a heap of what is put aside
    flying: dict[Flow, Any] = {}  # what is in flight, and its task
    gathered: dict[Any, list[tuple[Any, Any, Flow]]] = {}  # function -> items, tasks and flows
    told: set[Flow] = set()  # flows that know that nothing more is to be sent
    outcomes: list[tuple[Any, Any]] = []
    number = count()
    idle = finishing = closing = closed = False

    def direct() -> None:
        while not closing:
            turn()
        end()

    def turn() -> None:
        nonlocal idle
        idle = True
        driver.wait(pause())  # what is submitted before this look at it needs no wake
        idle = False
        work()

    def pause() -> float | None:
        if ready or closing or ((unsent or backlog) and (finishing or len(flying) < size)) or (finishing and due):
            return 0.0
        return max(0.0, due[0][0] - driver.now()) if due and len(flying) < size else None

    def work() -> None:
        if finishing:
            wind_down()
        go_on_all()
        awake()
        for _ in range(min(len(backlog), MOST_BEGUN, size - len(flying))):
            start(backlog.popleft())
        go_on_all()
        if outcomes:
            deliver(outcomes.copy())
            outcomes.clear()

    def go_on_all() -> None:
        while ready or gathered:
            while ready:
                go_on(*ready.popleft())
            for function, several in list(gathered.items()):
                del gathered[function]
                answer_all(function, several)
        while unsent and len(flying) < size:
            fly(*unsent.popleft())

    def awake() -> None:
        """Go on with those who are due, never with more of them than there are places: one who is told that it may send
        now does so now."""
        now = driver.now() if due else 0.0
        while due and due[0][0] <= now and len(flying) < size:
            while due and due[0][0] <= now and len(ready) < size - len(flying):
                _, _, task, steps = heapq.heappop(due)
                ready.append((task, steps, now, None))
            go_on_all()

    def start(task: Any) -> None:
        try:
            steps = begin(task)
        except Exception as exc:
            outcomes.append((task, exc))
        else:
            ready.append((task, steps, None, None))

    def go_on(task: Any, steps: Flow, answer: Any, problem: Exception | None) -> None:
        try:
            step: Any = steps.send(answer) if problem is None else steps.throw(problem)
            while (type(step) is Sleep and step.seconds <= 0) or (type(step) is Call and (closed or not step.blocks)):
                try:
                    answer = driver.now() if type(step) is Sleep else perform(step)
                except Exception as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(answer)
        except StopIteration as stop:
            outcomes.append((task, WoundDown() if steps in told else stop.value))
        except Exception as exc:
            outcomes.append((task, WoundDown() if steps in told else exc))
        else:
            put(task, steps, step)

    def put(task: Any, steps: Flow, step: Any) -> None:
        kind = type(step)
        if kind is Together:
            gathered.setdefault(step.function, []).append((step.item, task, steps))
        elif kind is Call:
            fly(task, steps, step)
        elif finishing:
            tell(task, steps)
        elif kind is Sleep:
            heapq.heappush(due, (driver.now() + step.seconds, next(number), task, steps))
            aside()
        else:
            unsent.append((task, steps, step))

    def fly(task: Any, steps: Flow, step: Any) -> None:
        flying[steps] = task
        done = partial(land, task, steps)
        if type(step) is Call:
            driver.call(step.function, done)
        else:
            driver.send(step, done)

    def land(task: Any, steps: Flow, answer: Any, problem: Exception | None) -> None:
        del flying[steps]
        ready.append((task, steps, answer, problem))

    def answer_all(function: Callable[[list[Any]], list[Any]], several: list[tuple[Any, Any, Flow]]) -> None:
        try:
            answers = function([item for item, _, _ in several])
        except Exception as exc:
            answers = [exc] * len(several)
        for answer, (_, task, steps) in zip(answers, several, strict=True):
            ready.append((task, steps, None, answer) if isinstance(answer, Exception) else (task, steps, answer, None))

    def wind_down() -> None:
        while backlog:
            outcomes.append((backlog.popleft(), WoundDown()))
        while unsent:
            tell(*unsent.popleft()[:2])
        while due:
            tell(*heapq.heappop(due)[2:])

    def tell(task: Any, steps: Flow) -> None:
        """Have a flow end, which may still want to write down what it has."""
        if steps in told:
            drop(task, steps)
        else:
            told.add(steps)
            ready.append((task, steps, None, WoundDown()))

    def drop(task: Any, steps: Flow) -> None:
        steps.close()
        outcomes.append((task, WoundDown()))

    def end() -> None:
        nonlocal closed
        driver.close()
        closed = True
        work()
        for steps, task in list(flying.items()):
            drop(task, steps)
        flying.clear()

    def submit(task: Any) -> None:
        nonlocal idle
        if thread is not None and not thread.ident:
            thread.start()
        backlog.append(task)
        if idle and len(flying) < size:
            idle = False  # once is enough
            driver.wake()

    def finish() -> None:
        nonlocal finishing
        finishing = True
        driver.wake()

    def close() -> None:
        nonlocal finishing, closing
        finishing = closing = True
        if thread is None or not thread.ident:
            end()
            return
        driver.wake()
        if threading.current_thread().name != THREAD:  # one of the map's own may collect a forgotten map
            thread.join(JOINED)

    thread = threading.Thread(target=direct, name=THREAD, daemon=True) if threaded else None
    return Pool(submit, None if threaded else turn, lambda: len(due), finish, close)
