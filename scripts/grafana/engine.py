"""Rows of the server dashboard about its engines: slots, batches, cache, models."""

from __future__ import annotations

from .panels import Panel, Query, Row, heatmap, percentiles
from .queries import PROCESS, Source, ratio

models = Source("retouch_server_", f'{PROCESS},model=~"$model"')
HIT = 'result="hit"'

SLOTS = Row(
    "Slots and batches",
    (
        Panel(
            "Slots and queue",
            "Edits that hold a slot and edits that wait, over the number of slots. Waiting while slots are free "
            "does not happen for long on one server; over several it says that the load is uneven.",
            (
                Query(models.total("running"), "running"),
                Query(models.total("queued"), "waiting"),
                Query(models.total("slots"), "slots"),
            ),
            colours={"running": "green", "waiting": "orange", "slots": "#8e8e8e"},
        ),
        Panel(
            "Occupancy by model",
            "Running / slots. Near 1 all day: this model wants more servers, or more slots if its memory allows. "
            "Near 0 all day: its device could serve something else.",
            (
                Query(
                    ratio(models.total("running", by="model"), models.total("slots", by="model")),
                    "{{model}}",
                ),
            ),
            unit="percentunit",
            top=1,
        ),
        Panel(
            "Load by server",
            "(waiting + running) / slots of each server. Normal: all about alike, since work goes where the load is "
            "least. One alone at the top: it is slower, or it stands still.",
            (Query(models.load("instance"), "{{instance}}"),),
            unit="percentunit",
            limits=(1, 2),
        ),
        Panel(
            "Batch size",
            "Mean rows per forward of the denoiser. An edit is one row a step, two or three with guidance on a "
            "UNet. Near that while many run: they do not share, being of other sizes or too large to gain by it.",
            (Query(models.mean("batch_rows", by="model"), "{{model}}"),),
            unit="suffix:rows",
        ),
        heatmap(
            "How batch sizes are spread",
            "Forwards by their rows; the stronger the colour, the more. "
            "Under load the strong band should lie above one edit's rows; "
            "if it does not, look at the token limit in Models below.",
            models.heat("batch_rows"),
            "suffix:rows",
        ),
        Panel(
            "Time per forward",
            "One forward of the denoiser, by percentile. It grows with rows and size. If it grows at the same "
            "batch size, the device is throttled, or something else runs on it.",
            percentiles(models, "forward_seconds"),
            unit="s",
        ),
        Panel(
            "Work done",
            "Forwards per second, and the rows in them: what the device really did, whatever became of the edits. "
            "Far apart is good: each forward serves many.",
            (
                Query(models.rate("batch_rows_count"), "forwards"),
                Query(models.rate("batch_rows_sum"), "rows"),
            ),
            unit="suffix:/s",
        ),
        Panel(
            "Steps of ended edits",
            "Denoising steps of the edits that ended, per second, by model: how the work is divided. "
            "More steps for the same pictures: callers have asked for finer ones.",
            (Query(models.rate("steps_total", by="model"), "{{model}}"),),
            unit="suffix:/s",
            stacked=True,
        ),
        Panel(
            "Forwards saved by reuse",
            "Share of steps for which an edit's own last answer stood in. 0 where the model's entry does not set "
            "`reuse`. High: fast, and further from the exact picture; look at your pictures.",
            (
                Query(
                    ratio(
                        models.rate("reused_total", by="model"),
                        models.rate("steps_total", by="model"),
                    ),
                    "{{model}}",
                ),
            ),
            unit="percentunit",
        ),
    ),
)

CACHES = Row(
    "Cache of encodings",
    (
        Panel(
            "Hits",
            "Share of the encodings of prompts and pictures that were still held. High where people edit one photo "
            "again and again, 0 where every photo is new. Neither is wrong.",
            (
                Query(
                    ratio(
                        models.rate("encoding_lookups_total", HIT, "kind"),
                        models.rate("encoding_lookups_total", by="kind"),
                    ),
                    "{{kind}}",
                ),
            ),
            unit="percentunit",
            top=1,
        ),
        Panel(
            "Lookups",
            "Encodings that edits needed, per second, by what of and whether they were held. Each miss costs a turn of "
            "the device; many misses of pictures with few bytes held: raise `cache_bytes`.",
            (
                Query(
                    models.rate("encoding_lookups_total", by="kind, result"), "{{kind}} {{result}}"
                ),
            ),
            unit="suffix:/s",
            stacked=True,
        ),
        Panel(
            "Bytes held",
            "Memory of the device that the encodings take, by model and server. It rises to `cache_bytes` of the "
            "model's entry and stays there. Lower that if the device runs out of memory.",
            (
                Query(
                    models.total("encoding_bytes", by="model, instance"), "{{model}} {{instance}}"
                ),
            ),
            unit="bytes",
        ),
    ),
)

MODELS = Row(
    "Models",
    (
        Panel(
            "What is loaded",
            "Each model on each server: how long it took to load, parameters, bytes of its weights, slots, and the "
            "tokens of the largest forward that is shared (0 = no limit).",
            (
                Query(models.total("model_load_seconds", by="model, instance"), "load", "s"),
                Query(models.total("model_parameters", by="model, instance"), "parameters"),
                Query(models.total("model_memory_bytes", by="model, instance"), "weights", "bytes"),
                Query(models.total("slots", by="model, instance"), "slots"),
                Query(models.total("max_tokens", by="model, instance"), "token limit"),
            ),
            "table",
            width=24,
            height=6,
        ),
    ),
)
