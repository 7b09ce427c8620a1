"""Hugging Face data sets: streams that break, refusals, against a stand-in for the library."""

import sys
import types

import pytest

from data.readers import hf_datasets
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from data.sources.source import SOURCES_OF_KIND
from errors import DataError

SOURCES = SOURCES_OF_KIND["documents"]


def documents(**settings) -> dict[str, list[str]]:
    """The documents of all splits."""
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, text in SOURCES["datasets"](DataConfig(**settings)).read(ReadStats()):
        found[split].append(text)
    return found


class Hub:
    """A stand-in for `datasets`: one stream of records that breaks at the named places."""

    def __init__(self, breaks: list[int], offline: bool = False, error=ConnectionError):
        self.config = types.SimpleNamespace(HF_HUB_OFFLINE=offline)
        self.breaks, self.error, self.asked = breaks, error, []

    def load_dataset(self, path, subset, *, split, revision, streaming, trust_remote_code):
        assert streaming and not trust_remote_code
        self.asked.append((path, subset, split, revision))
        return Stream(self)


class Stream:
    def __init__(self, hub: Hub):
        self.hub, self.at, self.start = hub, None, 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.start = state["at"]

    def __iter__(self):
        for i in range(self.start, 10):
            if i in self.hub.breaks:
                self.hub.breaks.remove(i)
                raise self.hub.error("the line went dead")
            self.at = i + 1
            yield {"text": f"document {i}"}


@pytest.fixture
def hub(monkeypatch):
    """Puts a fake library in place; returns what it slept."""

    def install(library: Hub) -> list[float]:
        pauses: list[float] = []
        monkeypatch.setitem(sys.modules, "datasets", library)
        monkeypatch.setattr(hf_datasets.time, "sleep", pauses.append)
        return pauses

    return install


PIN = "0123456789abcdef" * 2 + "01234567"
STREAM = {"source": "datasets", "path": "owner/name", "config_name": "small", "revision": PIN}


def test_a_stream_that_breaks_goes_on_where_it_stood(hub):
    # covers D17
    library = Hub(breaks=[0, 4, 4, 4, 9])
    pauses = hub(library)
    found = documents(**STREAM, valid_path="validation")
    assert sorted(sum(found.values(), [])) == sorted([f"document {i}" for i in range(10)] * 2)
    assert len(found["valid"]) == 10
    assert pauses == [2, 2, 4, 8, 2]
    assert {a[2] for a in library.asked} == {"train", "validation"}
    assert {a[:2] + a[3:] for a in library.asked} == {("owner/name", "small", PIN)}


def test_a_stream_that_stays_broken_ends_in_an_error(hub):
    # covers D17
    pauses = hub(Hub(breaks=[3] * 9))
    with pytest.raises(DataError, match="failed 5 times in a row .*the line went dead") as caught:
        documents(**STREAM)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert pauses == [2, 4, 8, 16]


def test_a_wrong_name_is_not_tried_again(hub):
    pauses = hub(Hub(breaks=[0], error=FileNotFoundError))
    with pytest.raises(DataError, match="owner/name@01234567 .train.: FileNotFoundError"):
        documents(**STREAM)
    assert pauses == []


def test_no_network_and_no_library_are_told_early(hub, monkeypatch):
    # covers D17
    library = Hub(breaks=[], offline=True)
    hub(library)
    with pytest.raises(DataError, match="Hugging Face is offline"):
        documents(**STREAM)
    assert library.asked == []
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'isoflop\[datasets\]'"):
        documents(**STREAM)


def test_records_without_text_follow_the_policy(hub):
    hub(Hub(breaks=[]))
    with pytest.raises(
        DataError, match="document 0 of train: no text under 'body'; it holds: text"
    ):
        documents(**STREAM, text_field="body")
