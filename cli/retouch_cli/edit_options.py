"""What `retouch edit` takes: its options, and its help, which is its manual."""

import argparse

from retouch_cli import gateway, outputs

SECONDS = 600.0
# An option -> the API's field. Values go there as they are written, for the gateway to judge.
FIELDS = {
    "negative_prompt": "negative_prompt",
    "model": "model",
    "n": "n",
    "size": "size",
    "strength": "strength",
    "guidance_scale": "guidance_scale",
    "steps": "num_inference_steps",
    "seed": "seed",
    "max_mode": "kontext_max_mode",
    "format": "output_format",
    "quality": "output_compression",
}

USAGE = "retouch edit PHOTO... PROMPT [-o FILE] [options]"

DESCRIPTION = """\
Edits a photo by an instruction, through a Retouch gateway, and writes the result to a file. While it
runs a bar on the terminal shows the place in the queue, then the steps. Ctrl-C cancels the edit, on
the server too.
"""

EPILOG = f"""\
results:
  Without -o the result of photo.jpg is photo-edited.png in the current folder, and that of standard
  input goes to standard output. With -n 4, -o out.png gives out-1.png to out-4.png, in the order of
  their seeds; a name with {{index}} or {{seed}} in it says where these go. A file that is there is kept,
  and nothing is sent, unless --force is given: a result whose seed nobody noted cannot be had again.
  Files are there whole or not at all. Their names go to standard output, a line each; a summary with
  the seeds goes to stderr. Images that came before an edit failed are kept, and it has failed all the
  same; those of one that was cancelled are not.

json:
  With --json standard output has one object instead: model, size, format, seconds, usage, and images,
  each with its file, seed and prompt as the model read it. A failure is one object too, {{"error":
  {{"message", "exit", and where known "option", "http", "request_id"}}}}, beside the line on stderr, and
  with images in it as above where some were kept. There is none where the command line is wrong (2)
  or the command was stopped (130, 143).

{gateway.ENVIRONMENT}
exit status:
  0    done, and all files are written
  1    failed: a file cannot be read or written, the edit failed, took too long, or its connection broke
  2    the command line is wrong; nothing was sent
  3    refused: a picture or a value is wrong; the message names the file or the option
  4    the gateway wants an API key, or another one
  5    the gateway stayed too busy until --timeout, or said that it would
  6    the gateway cannot be reached
  130  stopped by Ctrl-C, 143 by SIGTERM, as a shell shows it

examples:
  retouch edit photo.jpg "make it look like night"
  retouch edit photo.jpg "add snow" --mask sky.png --seed 7 -o snow.webp --quality 80
  retouch edit photo.jpg "add a warm sunset" -n 4 -o "sunset-{{seed}}.png"
  retouch edit person.jpg hat.jpg "let the person wear this hat" --model kontext
  retouch edit - "give it a sepia look" < photo.jpg > sepia.png
  retouch edit photo.jpg --prompt-file wish.txt --json | jq -r '.images[].seed'
  RETOUCH_URL=https://retouch.example.com retouch edit photo.jpg "more contrast" --key-file ~/.retouch-key

`retouch models` says what each model takes; `retouch up` starts a gateway here.
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PHOTO... PROMPT",
        help="PNG, JPEG or WebP files, told by their content, of which the first is edited and the "
        "others are references for models that take some; - is standard input. The last word is "
        "the prompt: the edit in words, unless it comes by an option",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt; all words are photos")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="a text file with the prompt; - is standard input"
    )
    _add_edit(parser.add_argument_group("the edit (what is absent is the model's default)"))
    _add_output(parser.add_argument_group("output"))
    gateway.add_to(parser, SECONDS)


def _add_edit(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mask",
        metavar="FILE",
        help="where to edit: a picture of the photo's size, white there, or transparent if it has "
        "alpha",
    )
    group.add_argument(
        "-n", type=_count, default=1, metavar="N", help="how many images, 1 to 10 (%(default)s)"
    )
    group.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="0 to 2^64-1: the same seed and options make the same image again; of several images "
        "the next one has the next seed (drawn at random)",
    )
    group.add_argument(
        "--size", metavar="WxH", help="pixels, such as 512x512 (the photo's, fitted to the model)"
    )
    group.add_argument("--strength", metavar="X", help="0 to 1: how far to move from the photo")
    group.add_argument("--guidance-scale", metavar="X", help="0 to 20: how closely to obey")
    group.add_argument("--steps", metavar="N", help="1 to 100 denoising steps")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from")
    group.add_argument("--model", metavar="ID", help="as `retouch models` lists it (the first one)")
    group.add_argument(
        "--max-mode", action="store_true", default=None, help="the model's profile for best quality"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to: a name, a folder, or - for standard output; see results",
    )
    group.add_argument(
        "--format",
        choices=outputs.ENDINGS,
        help="png, jpeg or webp (as -o ends, else png)",
        metavar="FORMAT",
    )
    group.add_argument("--quality", metavar="N", help="0 to 100, of jpeg and webp (90)")
    group.add_argument("-f", "--force", action="store_true", help="replace files that are there")
    group.add_argument("--json", action="store_true", help="say what came of it as JSON; see json")
    group.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")


def _count(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 10:
        return int(text)
    raise argparse.ArgumentTypeError("must be 1 to 10")


def _seed(text: str) -> int:
    if text.isdecimal() and len(text) <= 20 and int(text) < 2**64:
        return int(text)
    raise argparse.ArgumentTypeError("must be 0 to 2^64-1")
