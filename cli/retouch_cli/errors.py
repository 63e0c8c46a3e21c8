"""What a command may fail with, each with its exit status and the one line that its user sees.

Failure                     1  the command cannot go on: a file, a lost connection, an edit that failed
├── WrongCommandLine        2  an option or a word is wrong, and nothing was sent
├── Refused                 3  the request is wrong: a picture, a value, a model; the message names the option
├── Unauthorised            4  no API key, or none that may do this
├── Busy                    5  too busy, or no server is ready, for as long as there was to try again
└── Unreachable             6  no connection to the gateway
"""

from typing import Any


class Failure(Exception):
    """`http`: the status that the gateway answered; `option`: what is to be mended, such as `--size`.

    `images`: what came of the edit before, and was saved, as `--json` lists it.
    """

    status = 1

    def __init__(
        self,
        message: str,
        *,
        http: int | None = None,
        option: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.http, self.option, self.request_id = http, option, request_id
        self.images: list[dict[str, Any]] = []

    def as_json(self) -> dict[str, Any]:
        """For `--json`: what is not known is left out."""
        known = {"http": self.http, "option": self.option, "request_id": self.request_id}
        said = {name: value for name, value in known.items() if value is not None}
        error = {"message": str(self), "exit": self.status, **said}
        return {"error": error, **({"images": self.images} if self.images else {})}


class WrongCommandLine(Failure):
    status = 2


class Refused(Failure):
    status = 3


class Unauthorised(Failure):
    status = 4


class Busy(Failure):
    status = 5


class Unreachable(Failure):
    status = 6


def plain(text: str) -> str:
    """`text` on one line, without what a terminal would obey: control and direction characters are shown, not sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
