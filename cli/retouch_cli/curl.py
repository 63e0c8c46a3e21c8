"""An edit as a command of curl's, to be copied into a shell."""

import json
import shlex
from pathlib import Path


def as_curl(url: str, photo: Path, prompt: str) -> str:
    """The edit of `photo`, posted to `url`.

    An image is too large for an argument, so the body goes in by a pipe; curl's `-d @-` drops the
    line breaks that `base64` makes.
    """
    head = shlex.quote(f'{{"prompt": {json.dumps(prompt)}, "images": ["')
    image = shlex.quote(str(photo.resolve()))
    return (
        f"(printf %s {head}; base64 < {image}; printf '\"]}}') |\n"
        f"  curl -sS {url} -H 'Content-Type: application/json' -d @-"
    )
