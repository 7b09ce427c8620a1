"""Filters of single documents, in this process or in workers, in the order of the input."""

import contextlib
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import NamedTuple

from data.prepare import contamination, quality, toxicity
from data.prepare.duplicates import MinHasher, Signature, text_digest
from data.prepare.settings import PrepareConfig
from data.prepare.words import hash_text
from errors import DataError


class InputDocument(NamedTuple):
    """A document with its location."""

    location: int  # Index of the file and offset of the first byte: FILE << 48 | BYTE.
    line: str  # The line of JSON that is written.
    text: str


@dataclass(frozen=True)
class FilterResult:
    """The result of the filters: a stage that drops the document, or its keys for deduplication."""

    stage: str = ""
    reason: Mapping[str, object] = field(default_factory=dict)
    digest: bytes = b""
    signature: Signature | None = None


@dataclass(frozen=True)
class DocumentFilter:
    """The stages that examine a single document, in their order."""

    quality_bounds: quality.Bounds
    word_list: toxicity.WordList | None
    eval_ngrams: contamination.EvalNgrams | None
    min_hasher: MinHasher | None

    def __call__(self, text: str) -> FilterResult:
        """Applies the stages to a text."""
        if not text.strip():
            return FilterResult("empty")
        if failures := quality.failed_rules(text, self.quality_bounds):
            return FilterResult("quality", {"rules": failures})
        if not (self.word_list or self.eval_ngrams or self.min_hasher):
            return FilterResult(digest=text_digest(text))
        hashes = hash_text(text)
        if self.word_list and (reason := self.word_list.find_phrases(hashes)):
            return FilterResult("toxicity", reason)
        if self.eval_ngrams and (matches := self.eval_ngrams.find_matches(text, hashes)):
            return FilterResult("contamination", {"items": matches})
        signature = self.min_hasher(hashes) if self.min_hasher else None
        return FilterResult(digest=text_digest(text), signature=signature)


DocumentBlock = list[InputDocument]
FilteredBlock = tuple[DocumentBlock, list[FilterResult]]


def make_filter(cfg: PrepareConfig) -> DocumentFilter:
    """Returns the filter with the word list and the evaluation sets of `cfg`."""
    word_list = eval_ngrams = None
    if cfg.toxic_words:
        word_list = toxicity.read_word_list(cfg.toxic_words, cfg.toxic_count, cfg.toxic_share)
    if cfg.evals:
        eval_ngrams = contamination.read_eval_ngrams(cfg.evals, cfg.ngram, cfg.min_words, cfg.cache)
    min_hasher = MinHasher() if cfg.jaccard_threshold else None
    return DocumentFilter(quality.parse_rules(cfg.quality), word_list, eval_ngrams, min_hasher)


def filter_blocks(
    blocks: Iterable[DocumentBlock], document_filter: DocumentFilter, workers: int
) -> Iterator[FilteredBlock]:
    """Yields each block with its results, in order; each worker has at most one block at a time."""
    if workers == 1:
        for block in blocks:
            yield block, [document_filter(document.text) for document in block]
        return
    with _worker_pool(document_filter, workers) as pool:
        waiting: deque[tuple[DocumentBlock, FilterWorker]] = deque()
        for number, block in enumerate(blocks):
            worker = pool[number % workers]
            finished = None
            if len(waiting) == workers:
                finished = waiting[0][0], worker.receive()
            worker.send([document.text for document in block])
            waiting.append((block, worker))
            if finished:
                waiting.popleft()
                yield finished
        for block, worker in waiting:
            yield block, worker.receive()


class FilterWorker:
    """A process that filters texts, with the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, worker_pipe = context.Pipe()
        self.process = context.Process(target=_run_worker, args=(worker_pipe,), daemon=True)
        self.process.start()
        worker_pipe.close()

    def send(self, message: object) -> None:
        """Sends the filter, or texts.

        Raises:
            DataError: if the process has ended.
        """
        try:
            self.pipe.send(message)
        except ConnectionError as error:
            raise self._describe_end() from error

    def receive(self) -> list[FilterResult]:
        """Returns the results of the texts that were sent.

        Raises:
            DataError: if the process has ended.
        """
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._describe_end() from error

    def stop(self) -> None:
        """Ends the process."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()

    def _describe_end(self) -> DataError:
        self.process.join()
        return DataError(
            f"a worker ended with exit code {self.process.exitcode} (-9: too little memory); use "
            "fewer --workers; the same command continues from the documents that are filtered"
        )


@contextlib.contextmanager
def _worker_pool(
    document_filter: DocumentFilter, workers: int
) -> Generator[list[FilterWorker], None, None]:
    """Yields processes that filter the texts from their pipes; they end with the context."""
    pool: list[FilterWorker] = []
    try:
        with _ignore_sigint():
            pool.extend(FilterWorker() for _ in range(workers))
        for worker in pool:
            worker.send(document_filter)
        yield pool
    finally:
        for worker in pool:
            worker.stop()


@contextlib.contextmanager
def _ignore_sigint() -> Generator[None, None, None]:
    """Lets processes that start in this context ignore Ctrl-C, which is for the main process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows only the main thread to set signal handlers.
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _run_worker(pipe: Connection) -> None:
    """Filters texts until the main process ends, in whatever way it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        document_filter = pipe.recv()
        while True:
            pipe.send([document_filter(text) for text in pipe.recv()])
