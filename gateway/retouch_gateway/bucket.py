"""A bucket in S3, Google Cloud Storage or Azure, by obstore: the extra `object-store`.

Credentials, region and endpoint come from each cloud's own variables, as obstore reads them.

obstore's blocking calls, in our threads: its asynchronous ones hand their results over from threads
of their own, and one that does so while the interpreter ends aborts the process.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta

import obstore
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError
from obstore.store import from_url

from retouch_gateway.stores import Entry, Store

# A request's own bounds, where the operator's variables set no other. Every way to bound them in
# code would make obstore forget the rest of what those variables say of its client.
_BOUNDS = {"CONNECT_TIMEOUT": "2s", "TIMEOUT": "8s"}
_VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_QUERY = re.compile(r"\?\S+")  # of an address: a signature, on Azure


class Bucket(Store):
    """What lies in a bucket right under the prefix."""

    def __init__(self, url: str) -> None:
        super().__init__()
        for name, bound in _BOUNDS.items():
            os.environ.setdefault(f"{_VARIABLES[url[:2]]}_{name}", bound)
        with _as_os_errors():
            self._bucket = from_url(
                url, retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=5)}
            )

    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        try:
            with _as_os_errors():
                obstore.put(
                    self._bucket,
                    name,
                    data,
                    attributes={"Content-Type": media_type},
                    mode="create" if create else "overwrite",
                    use_multipart=False,  # whole or not at all, and nothing left behind
                )
        except FileNotFoundError:  # which is said of names that are not there
            raise OSError("there is no such bucket") from None

    def _get(self, name: str) -> bytes:
        with _as_os_errors():
            return bytes(obstore.get(self._bucket, name).bytes())

    def _delete(self, names: tuple[str, ...]) -> int:
        with _as_os_errors():
            try:
                obstore.delete(self._bucket, names)
            except (FileNotFoundError, PermissionDeniedError):  # of one, and the others may be left
                return super()._delete(names)
        return len(names)

    def _delete_one(self, name: str) -> None:
        with _as_os_errors():
            obstore.delete(self._bucket, name)

    def _entries(self) -> list[Entry]:
        with _as_os_errors():
            listed = obstore.list_with_delimiter(self._bucket)["objects"]
        # Under the prefix, as the store itself names them.
        return [Entry(each["path"], each["last_modified"].timestamp()) for each in listed]


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Whatever obstore raises, as an OSError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError("not in the bucket") from None
    except AlreadyExistsError:
        raise FileExistsError("in the bucket already") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust's is no Exception
        line = str(error).partition("\n")[0]
        raise OSError(_QUERY.sub("", line)) from None
