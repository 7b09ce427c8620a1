"""What can be said of a document by itself, in this process or in others, in the order given."""

import contextlib
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from data.prepare import contamination, quality, toxicity
from data.prepare.duplicates import Signature, Signer, digest
from data.prepare.settings import PrepareConfig
from data.prepare.words import hashes, words
from errors import DataError


class Document(NamedTuple):
    place: int  # of its file in the list and of its first byte: FILE << 48 | BYTE
    line: str  # as it is written
    text: str


@dataclass(frozen=True)
class Finding:
    """What one document is by itself: `stage` drops it, or it may be a duplicate."""

    stage: str = ""
    why: Mapping[str, Any] = field(default_factory=dict)
    digest: bytes = b""
    signature: Signature | None = None


@dataclass(frozen=True)
class Examiner:
    """The stages that look at one document, in their order."""

    rules: quality.Bounds
    toxic: toxicity.WordList | None
    evals: contamination.Evals | None
    sign: Signer | None

    def __call__(self, text: str) -> Finding:
        if not text.strip():
            return Finding("empty")
        if broken := quality.broken(text, self.rules):
            return Finding("quality", {"rules": broken})
        if not (self.toxic or self.evals or self.sign):
            return Finding(digest=digest(text))
        found = words(text)
        if self.toxic and (why := self.toxic.found(found)):
            return Finding("toxicity", why)
        codes = hashes(found)
        if self.evals and (hits := self.evals.hits(found, codes)):
            return Finding("contamination", {"items": hits})
        signature = self.sign(codes) if self.sign else None
        return Finding(digest=digest(text), signature=signature)


Block = list[Document]


def examiner(cfg: PrepareConfig) -> Examiner:
    toxic = evals = None
    if cfg.toxic_words:
        toxic = toxicity.read(cfg.toxic_words, cfg.toxic_count, cfg.toxic_share)
    if cfg.evals:
        evals = contamination.read(cfg.evals, cfg.ngram, cfg.shortest, cfg.cache)
    return Examiner(quality.parse(cfg.quality), toxic, evals, Signer() if cfg.near else None)


def examined(
    blocks: Iterable[Block], examine: Examiner, workers: int
) -> Iterator[tuple[Block, list[Finding]]]:
    """Each block with its findings, in order. Of each worker at most one block is held."""
    if workers == 1:
        for block in blocks:
            yield block, [examine(document.text) for document in block]
        return
    with _staff(examine, workers) as staff:
        waiting: deque[tuple[Block, int]] = deque()
        for number, block in enumerate(blocks):
            own = number % workers
            done = (waiting[0][0], _answer(*staff[own])) if len(waiting) == workers else None
            staff[own][0].send([document.text for document in block])
            waiting.append((block, own))
            if done:
                waiting.popleft()
                yield done
        for block, own in waiting:
            yield block, _answer(*staff[own])


@contextlib.contextmanager
def _staff(examine: Examiner, workers: int) -> Iterator[list[tuple[Connection, BaseProcess]]]:
    """Processes that examine what comes through their pipes; they end with this."""
    context = multiprocessing.get_context("spawn")
    staff: list[tuple[Connection, BaseProcess]] = []
    try:
        with _deaf():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process: BaseProcess = context.Process(
                    target=_serve, args=(theirs, examine), daemon=True
                )
                process.start()
                theirs.close()
                staff.append((ours, process))
        yield staff
    finally:
        for pipe, process in staff:
            pipe.close()
            process.terminate()
            process.join()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let processes begun here ignore Ctrl-C from the start: it is for the one who reads."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, examine: Examiner) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send([examine(text) for text in pipe.recv()])


def _answer(pipe: Connection, process: BaseProcess) -> list[Finding]:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        raise DataError(
            f"a worker ended with exit code {process.exitcode}, "
            "of too little memory if it is -9; use fewer --workers"
        ) from error
