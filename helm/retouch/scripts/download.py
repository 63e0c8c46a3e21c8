"""The init container: what the catalogue names on the hub, fetched into HF_HOME, so that the server needs no network.

RETOUCH_SERVER_MODELS is the catalogue. What is there already is not fetched again, and where all of it is, the hub may
be out of reach.
"""

import os
import sys
from contextlib import suppress

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from retouch_server import catalog
from retouch_server.checkpoint import is_hub_id


def fetch_model(entry: catalog.ModelEntry) -> None:
    """The files that diffusers would load, and no others; and the card."""
    folder = DiffusionPipeline.download(entry.source, revision=entry.revision, use_safetensors=True)
    # Only instructions to try come from the card: a model may be without.
    with suppress(EntryNotFoundError, LocalEntryNotFoundError):
        hf_hub_download(entry.source, "README.md", revision=entry.revision)
    print(f"{entry.id}: {folder}")


def main() -> None:
    for entry in catalog.read(os.environ["RETOUCH_SERVER_MODELS"]):
        try:
            if is_hub_id(entry.source):
                fetch_model(entry)
            for lora in entry.loras:
                if is_hub_id(lora.source) and lora.weight_name:
                    hf_hub_download(lora.source, lora.weight_name, revision=lora.revision)
        # The hub's, the network's, the disk's: one line says which model it was.
        except Exception as error:
            sys.exit(f"{entry.id}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
