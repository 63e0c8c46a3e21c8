"""Where hosted images and kept replies lie: a folder, or a bucket.

Flat names and whole contents. Each operation runs in a thread of its own, so that one that hangs
holds up neither the event loop, nor the threads that others work in, nor the process's end.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from threading import enumerate as all_threads
from typing import NamedTuple, TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")

# How long an operation may take, its wait for a thread included; listing takes as long as it takes.
SECONDS = 10.0
# At once; one that hangs counts, so that no more is held than so many hold.
THREADS = 32
# How long those that still work are waited for when the process ends.
LAST_SECONDS = 3.0
KEY = ".signing-key"

_THREAD = "store"
_PART = re.compile(r"\.part-[0-9a-f]{32}")
_PART_SECONDS = 3600.0  # far longer than any write


class Entry(NamedTuple):
    """Something kept."""

    name: str
    # Unix seconds of its last write, by the store's clock.
    modified: float


class Store(ABC):
    """Bytes by name. Everything raises OSError when the store fails, a TimeoutError included."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(THREADS)

    async def put(
        self, name: str, data: bytes, media_type: str = "application/octet-stream"
    ) -> None:
        """Keep all of `data` or nothing."""
        await self._soon(self._put, name, data, media_type, False)

    async def create(self, name: str, data: bytes) -> bytes:
        """Keep `data` if the name is free. Returns what is kept there: `data`, or what came first.

        To be told that the name is taken is not to have come second: a bucket may keep `data`, fail
        to say so and be asked again. So `data` that only this caller can have tells who was first.
        Raises FileNotFoundError if what came first has just been deleted.
        """
        try:
            await self._soon(self._put, name, data, "application/octet-stream", True)
        except FileExistsError:
            return await self.get(name)
        return data

    async def get(self, name: str) -> bytes:
        """All that is kept there. Raises FileNotFoundError."""
        return await self._soon(self._get, name)

    async def delete(self, *names: str) -> int:
        """Keep them no longer; it is no error if they are gone already.

        Returns how many were there; a bucket cannot tell, and says all.
        """
        return await self._soon(self._delete, names)

    async def entries(self) -> list[Entry]:
        """Whatever is there, ours or not, in any order."""
        return await self._run(self._entries)

    async def _soon(self, work: Callable[[*Args], T], *args: *Args) -> T:
        try:
            async with asyncio.timeout(SECONDS):
                return await self._run(work, *args)
        except TimeoutError as error:
            raise TimeoutError(f"no answer for {SECONDS:g} s") from error

    async def _run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        await self._free.acquire()
        return await self._begin(work, args)

    def _begin(self, work: Callable[[*Args], T], args: tuple[*Args]) -> asyncio.Future[T]:
        done = Future[T]()
        done.set_running_or_notify_cancel()  # from here on nobody cancels it
        free = partial(asyncio.get_running_loop().call_soon_threadsafe, self._free.release)
        try:
            Thread(target=_work, args=(done, work, args, free), name=_THREAD, daemon=True).start()
        except RuntimeError as error:
            self._free.release()
            raise OSError(str(error)) from None
        return asyncio.wrap_future(done)

    @abstractmethod
    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        """`create`: raises FileExistsError if the name is taken."""

    @abstractmethod
    def _get(self, name: str) -> bytes: ...

    def _delete(self, names: tuple[str, ...]) -> int:
        """All that can be deleted, then raises why another cannot."""
        deleted, errors = 0, []
        for name in names:
            try:
                self._delete_one(name)
                deleted += 1
            except FileNotFoundError:
                pass
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return deleted

    @abstractmethod
    def _delete_one(self, name: str) -> None: ...

    @abstractmethod
    def _entries(self) -> list[Entry]: ...


def _work(
    done: Future[T], work: Callable[[*Args], T], args: tuple[*Args], free: Callable[[], object]
) -> None:
    """All that a thread does."""
    try:
        done.set_result(work(*args))
    except BaseException as error:
        done.set_exception(error)
        del done  # it holds the error, whose traceback would hold it, and `args` with it
    with contextlib.suppress(RuntimeError):  # the loop that asked is closed
        free()


@atexit.register
def _wait_for_threads() -> None:
    """One that comes back from a bucket while the interpreter ends may abort it; one that hangs cannot."""
    deadline = time.monotonic() + LAST_SECONDS
    for thread in all_threads():
        if thread.name == _THREAD:
            thread.join(max(0, deadline - time.monotonic()))


class Folder(Store):
    """A folder (0700) of files (0600), made when the first is written."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        part = self.folder / f".part-{secrets.token_hex(16)}"
        try:
            self._make_folder()
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(data)
            if create:
                (self.folder / name).hardlink_to(part)
            else:
                part.rename(self.folder / name)
        finally:
            part.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        """Raises no FileExistsError, which would say that a name is taken, where this is a file or leads nowhere."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None

    def _get(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _delete_one(self, name: str) -> None:
        (self.folder / name).unlink()

    def _entries(self) -> list[Entry]:
        found = []
        for entry in self._files():
            if not _PART.fullmatch(entry.name):
                found.append(entry)
            elif entry.modified < time.time() - _PART_SECONDS:  # its writer died over it
                self._delete((entry.name,))
        return found

    def _files(self) -> Iterator[Entry]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another replica has deleted it
                    if entry.is_file(follow_symlinks=False):
                        yield Entry(entry.name, entry.stat(follow_symlinks=False).st_mtime)


def open_store(place: str) -> Store:
    """The store at `place`: a folder, or `s3://bucket/prefix`, `gs://…` or `az://…`.

    Raises OSError if a bucket's own variables do not say enough to reach it; nothing is asked yet.
    """
    if "://" not in place:
        return Folder(Path(place))
    from retouch_gateway.bucket import Bucket  # an extra

    return Bucket(place)


async def kept_key(store: Store) -> bytes:
    """The random key kept in `store`, made if there is none yet, so that replicas agree on it.

    Whoever may read the store can sign with it. Raises OSError if it can be neither read nor made,
    or is too short to have been made here.
    """
    try:
        key = await store.get(KEY)
    except FileNotFoundError:
        key = await store.create(KEY, secrets.token_hex(32).encode())
    if len(key) < 32:
        raise OSError(f"{KEY} is too short for a key")
    return key
