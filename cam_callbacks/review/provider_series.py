"""What monitors have recorded, read through TensorBoard's data provider and kept in memory."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from tensorboard.data import provider

from cam_callbacks import tags
from cam_callbacks.review import schema
from cam_callbacks.review.reader import RecordNotFoundError

_CACHE_BYTES = 256 * 2**20
_CACHE_SECONDS = 1.0
_MAX_THREADS = 8
_ALL_STEPS = 10**9  # TensorBoard asks for a maximum

_Index = dict[str, dict[int, tuple[float, str]]]  # by record and step: wall time, and the key of the blob


class ByteCache:
    """The values that were used last, up to a total number of bytes. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._size = max_bytes, 0
        self._values: OrderedDict[Any, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, make: Callable[[], bytes]) -> bytes:
        """Return the value of a key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = made
                self._size += len(made)
            while self._size > self._max_bytes:
                _, oldest = self._values.popitem(last=False)
                self._size -= len(oldest)
        return made


@dataclass(frozen=True)
class Place:
    """Where a monitor has recorded."""

    experiment: str
    run: str
    monitor: str


class ProviderSeries:
    """What one monitor has recorded in one run, as a `cam_callbacks.review.reader.Series`.

    Args:
        index: Its records.
        place: Where it has recorded them.
        read: Reads the blob of a key.
        cache: Keeps blobs.
        threads: Read several blobs at once.
    """

    def __init__(
        self, index: _Index, place: Place, read: Callable[[str], bytes], cache: ByteCache, threads: Executor
    ) -> None:
        self.place = place
        self._index, self._read, self._cache, self._threads = index, read, cache, threads

    def steps(self, record: str) -> Mapping[int, float]:
        """Return what `Series.steps` promises."""
        return {step: wall_time for step, (wall_time, _) in self._index.get(record, {}).items()}

    def blob(self, record: str, step: int) -> bytes:
        """Return what `Series.blob` promises."""
        wall_time, key = self._index[record][step]
        return self._cache.get((self.place, record, step, wall_time), lambda: self._read(key))

    def cached(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return something that is made of these records, made anew if any of them has changed."""
        return self._cache.get((self.place, name, self.state()), make)

    def fetch(self, records: Iterable[str], step: int | None = None) -> None:
        """Read the blobs of some records into the cache at once: one by one, each would wait for the network.

        Args:
            records: Their names.
            step: The only step to read; None for all.
        """
        wanted = [(record, each) for record in records for each in self.steps(record) if step in (None, each)]
        list(self._threads.map(self.blob, *zip(*wanted, strict=True)) if wanted else ())

    def state(self) -> str:
        """Return a hash that changes with whatever is recorded."""
        steps = [(record, *sorted(self.steps(record).items())) for record in schema.RECORDS]
        return hashlib.sha256(repr(steps).encode()).hexdigest()[:16]


class ProviderReader:
    """Reads through a data provider, and keeps what was read last.

    Args:
        data_provider: TensorBoard's.
    """

    def __init__(self, data_provider: Any) -> None:
        self._provider = data_provider
        self._cache = ByteCache(_CACHE_BYTES)
        self._indices: dict[Place, tuple[float, _Index]] = {}
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix=schema.PLUGIN)

    def tags(self, context: Any, experiment: str) -> Mapping[str, Iterable[str]]:
        """Return the tags of our records, by run."""
        found: Mapping[str, Iterable[str]] = self._provider.list_blob_sequences(
            context, experiment_id=experiment, plugin_name=schema.PLUGIN
        )
        return found

    def series(self, context: Any, place: Place) -> ProviderSeries:
        """Return what a monitor has recorded; the provider is asked at most once a second.

        Raises:
            RecordNotFoundError: It has recorded nothing.
        """
        asked, index = self._indices.get(place, (-_CACHE_SECONDS, {}))
        if time.monotonic() - asked >= _CACHE_SECONDS:
            index = self._find(context, place)
            self._indices[place] = (time.monotonic(), index)

        def read(key: str) -> bytes:
            return bytes(self._provider.read_blob(context, blob_key=key))

        return ProviderSeries(index, place, read, self._cache, self._threads)

    def _find(self, context: Any, place: Place) -> _Index:
        record_of = {tags.tag(place.monitor, record): record for record in schema.RECORDS}
        found = self._provider.read_blob_sequences(
            context,
            experiment_id=place.experiment,
            plugin_name=schema.PLUGIN,
            downsample=_ALL_STEPS,
            run_tag_filter=provider.RunTagFilter(runs=[place.run], tags=list(record_of)),
        ).get(place.run)
        if not found:
            raise RecordNotFoundError(f"there is no monitor {place.monitor!r} in a run {place.run!r}")
        return {
            record_of[tag]: {datum.step: (datum.wall_time, datum.values[0].blob_key) for datum in data if datum.values}
            for tag, data in found.items()
        }
