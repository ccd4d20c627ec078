"""The command line: it translates arguments and prints results, nothing else."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from swapfast import __version__
from swapfast.bars import Bars
from swapfast.commands import (
    activations,
    completion,
    export,
    extract,
    inspect,
    preview,
    swap,
    synthesize,
    timelapse,
    watch,
)
from swapfast.commands.argument_types import checkpoint, iteration, path, positive
from swapfast.commands.examples import examples_of
from swapfast.commands.setting_flags import add_set_flag, add_setting_flags
from swapfast.commands.weights import add_weights
from swapfast.config import TrainConfig
from swapfast.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, EXIT_STOPPED, SwapfastError, shortened, unknown_name
from swapfast.options import settings
from swapfast.printing import complain, say
from swapfast.sources import choose, recipe_differences
from swapfast.stop import StopRequest, stopped_line

USE = """\
Faces of real people: use swapfast only with the consent of everybody shown, never to deceive, harass or undress, and
label what you publish as synthetic."""

EXAMPLES = """\
examples:
  swapfast synthesize faces                                     made-up faces to try things out on
  swapfast extract -i clip.mp4 -o faces/a                       the faces of a video, aligned, with their landmarks
  swapfast inspect faces/a                                      what a folder holds, and every bad file
  swapfast train -A faces/a -B faces/b -m model -t tiny         train; the same command goes on after a stop
  swapfast train -C run.toml                                    the same, all of it written in a file (--print-config)
  swapfast evaluate -m model --truth faces/truth                how good the swap is, in dB
  swapfast swap -m model -i frames -p faces/a -o swapped        a trained model applied to pictures
  swapfast prepare faces/a prepared/a --size 256                a portable set at training size; train takes it
  swapfast augment faces/a -o sheet.png                         what training will see of a folder
  swapfast cache model                                          what the next start need not decode again
  swapfast restore model --list                                 backups and snapshots to go back to
  swapfast import dfl/model -m model                            go on with a model of DeepFaceLab, -A dst -B src
  swapfast export -m model --to dfm                             for DeepFaceLive, facefusion and others
  swapfast log model -o losses.png                              how training went, in numbers and as a picture
  swapfast preview model                                        a window that follows it
  swapfast timelapse model -o film.mp4                          a film of how it learned
  swapfast watch model                                          a page in the browser that follows it
"""


VARIABLES = """\
Settings of train, prepare and augment are read from the environment too, for containers: SWAPFAST_BATCH_SIZE=32 or, in
full, SWAPFAST_OPTIMIZER_LEARNING_RATE=1e-4. A flag ranks over a variable, a variable over the file of -C, the file over
what a resumed model keeps."""

_NEGATIVE = re.compile(r"-[.\d].*", re.DOTALL)  # a number, not a flag
_MOST_LISTED = 40  # flags that one line shows
_LONGEST_LINE = 400  # characters of what argparse says of a wrong flag
# Flags of faceswap's guides, which argparse would take for others: -bs 8 for -b s.
FORMER_FLAGS = {
    "-bs": "-bs is -b now: -b 8",
    "-it": "-it is -i now: -i 100000",
    "-ss": "-ss is -I now, and -s says how often the model is saved: -I 25000",
    "-g": "torchrun starts one process a GPU: torchrun --nproc-per-node 2 -m swapfast train ...",
    "-w": "the preview is always written: leave -w away",
    "-wl": "-wl is -M now",
    "-nw": "-nw is -W now",
}

# The settings that these commands take, as flags and as variables.
_PREPARE_SETTINGS = ("crop.", "mask.", "run.face_type", "run.skip")
_AUGMENT_SETTINGS = ("crop.", "mask.", "augmentation.", "seed", "run.face_type", "run.skip")


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that answer an unknown flag with the nearest known one."""

    commands: Mapping[str, argparse.ArgumentParser]  # of the program, by their names

    def error(self, message: str) -> NoReturn:
        words = " ".join(message.removeprefix("argument ").split())
        raise SwapfastError(words if len(words) <= _LONGEST_LINE else f"{words[:_LONGEST_LINE]} ...")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Answer a value that is not among the choices with the nearest one."""
        if action.choices is not None and value not in action.choices:
            raise unknown_name("/".join(action.option_strings) or action.dest, value, map(str, action.choices))

    def _elsewhere(self, flag: str) -> str:
        """Return which commands have a flag that this one lacks, ' (of swap, export)', or '' where none has."""
        names = [name for name, command in self.commands.items() if flag in command._option_string_actions]
        return f" (a flag of {', '.join(names)})" if names else ""

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        if arguments and arguments[0] == "train":
            for word in arguments:
                if word.split("=")[0] in FORMER_FLAGS:
                    raise SwapfastError(f"{word} is a flag of faceswap's guides: {FORMER_FLAGS[word.split('=')[0]]}")
        self._check_flags(arguments)
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            of = parsed.command or "swapfast"
            raise SwapfastError(f"{of}: unexpected {shortened(unknown[0])}; see `{self.prog} {parsed.command} --help`")
        return parsed

    def _check_flags(self, words: Sequence[str]) -> None:
        """Raise SwapfastError for the first flag that the command lacks, whatever else is wrong.

        argparse would first tell of what is missing, which may be the very flag that is misspelt.
        """
        command = self.commands.get(words[0]) if words else None
        parser = self if command is None else command
        flags = parser._option_string_actions
        if {"-h", "--help"} & set(words) or (command is None and words and not words[0].startswith("-")):
            return
        for word in words if command is None else words[1:]:
            if word == "--" or (command is None and not word.startswith("-")):
                return
            name = _flag_of(word)
            if name is None or name in flags or (not name.startswith("--") and name[:2] in flags):
                continue
            kind = "flag" if command is None else f"flag for {words[0]}"
            listed = f"those of `swapfast {words[0]} --help`" if len(flags) > _MOST_LISTED else ""
            raise SwapfastError(f"{unknown_name(kind, name, flags, listed)}{self._elsewhere(name)}")


def _flag_of(word: str) -> str | None:
    """Return the flag that ``word`` is, without its value; None for what is none, as argparse sees it."""
    name = word.partition("=")[0]
    is_flag = name.startswith("-") and len(name) > 1 and " " not in name and not _NEGATIVE.fullmatch(word)
    return name if is_flag else None


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-C",
        "--config",
        type=path,
        metavar="FILE",
        help="settings from a TOML file, which may hold a whole run (--print-config); its relative paths are relative "
        "to the working directory, as those of flags are",
    )
    parser.add_argument(
        "-u", "--summary", action="store_true", help="print the network's layers, shapes and parameters, and stop"
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print all settings as TOML and stop: of a model that is in -m already its own, but for what is given",
    )
    add_set_flag(parser)
    add_setting_flags(parser, ("run.",), "the run (asked anew at every start)")
    others = tuple(name for name in settings(TrainConfig()) if not name.startswith("run."))
    add_setting_flags(parser, others, "settings (a resumed model keeps its own unless they are given)")


def _train(arguments: argparse.Namespace, stop: StopRequest) -> int:
    from pipelines.run.command import train
    from pipelines.run.plan import describe_model
    from pipelines.run.request import TrainRequest
    from pipelines.run.resume import settled_config

    request = TrainRequest(arguments.choice.config, arguments.choice.changes)
    if arguments.print_config:
        if _is_first():
            config, lines = settled_config(request)
            for line in lines:
                complain(line)
            say(config.to_toml().rstrip("\n"))
        return EXIT_DONE
    if arguments.summary:
        if _is_first():
            say(describe_model(request))
        return EXIT_DONE
    return train(request, stop)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="FOLDER")
    parser.add_argument("out", type=path, metavar="OUT", help="a new folder, to be given to train -A or -B")
    parser.add_argument(
        "--format",
        choices=("jpeg", "raw"),
        default="jpeg",
        help="jpeg: 4:4:4, quality 98, which a GPU decodes itself; raw: lossless, several times as large; default jpeg",
    )
    parser.add_argument("--size", type=positive, default=256, help="edge in px; default 256")
    add_set_flag(parser)
    add_setting_flags(parser, _PREPARE_SETTINGS, "settings (as for train)")


def _prepare(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.prepare import prepare
    from swapfast.faces.skip_list import read_skip_lists

    config = arguments.choice.config
    with Bars() as bars:
        report = prepare(
            arguments.folder,
            arguments.out,
            arguments.format,
            arguments.size,
            config.crop,
            config.mask,
            config.run.skip_bad,
            progress=bars(f"preparing {arguments.folder}"),
            scanning=bars(f"reading {arguments.folder}"),
            skip=read_skip_lists(config.run.skip_lists),
        )
    omitted = f", {len(report.bad)} bad files left out" if report.bad else ""
    omitted += f", {report.skipped} left out by --skip" if report.skipped else ""
    per_face = report.bytes / report.faces / 1024
    say(f"{report.faces} faces at {arguments.size} px in {arguments.out}: {per_face:.0f} KiB each{omitted}")
    return EXIT_DONE


def _add_augment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="FOLDER", help="a folder of faces, or a prepared set")
    parser.add_argument("-o", "--out", type=path, required=True, metavar="FILE", help="the picture: .png or .jpg")
    parser.add_argument(
        "-B",
        "--input-B",
        type=path,
        metavar="DIR",
        help="the other side: warp to its landmarks, and exchange light with it; default FOLDER, and no light",
    )
    parser.add_argument("--size", type=positive, default=256, help="edge in px; default 256")
    parser.add_argument("--faces", type=positive, default=8, help="rows; default 8")
    parser.add_argument(
        "--percentile", type=float, metavar="P", help="pin every draw there, such as 1, 50 or 99, to see the extremes"
    )
    add_set_flag(parser)
    add_setting_flags(parser, _AUGMENT_SETTINGS, "settings (as for train)")


def _augment(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.sheet import SheetRequest, make_sheet

    config = arguments.choice.config
    request = SheetRequest(
        arguments.folder,
        arguments.out,
        config,
        arguments.input_B,
        arguments.size,
        arguments.faces,
        arguments.percentile,
        config.run.skip_bad,
    )
    with Bars() as bars:
        unwarped = make_sheet(request, bars, complain)
    note = f" ({unwarped} of its faces cannot be warped to landmarks)" if unwarped else ""
    say(f"look at {arguments.out}{note}")
    return EXIT_DONE


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="DIR", help="a model folder, or the folder given to --cache-dir")
    parser.add_argument("--clear", action="store_true", help="remove all of it: the next start decodes again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _cache(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.cache import clear_cache, describe_cache, list_cache

    inside = arguments.folder / "cache"
    folder = inside if inside.is_dir() else arguments.folder
    files = list_cache(folder)
    if arguments.clear and not files and not inside.is_dir() and not any(folder.glob("checkpoint-*")):
        raise SwapfastError(f"--clear {folder}: holds no cache and is no model folder; give the model's folder")
    if arguments.json:
        say(json.dumps({"folder": str(folder), "files": files}, indent=1))
    else:
        say(describe_cache(folder, files))
    if arguments.clear:
        freed = clear_cache(folder)
        (complain if arguments.json else say)(f"removed {len(files)} files, {freed / 2**20:.1f} MiB")
    return EXIT_DONE


def _swap(arguments: argparse.Namespace, stop: StopRequest) -> int:
    from pipelines.picture_decoder import open_decoder

    return swap.run(arguments, stop, open_decoder)


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="MODEL", help="a model folder")
    parser.add_argument("-o", "--out", type=path, metavar="FILE", help="draw the losses into this PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _log(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.files import check_new_file, write_file
    from swapfast.logs.loss_plot import draw_losses
    from swapfast.logs.summary import describe, load_history, summarise

    if arguments.out:
        check_new_file(arguments.out, "-o/--out", (".png",))
    history = load_history(arguments.folder)
    summary = summarise(history)
    say(json.dumps(summary, indent=1) if arguments.json else describe(summary, arguments.folder))
    if arguments.out:
        write_file(arguments.out, draw_losses(history, arguments.folder.resolve().name))
    return EXIT_DONE


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="MODEL", help="a model folder that nobody trains in")
    parser.add_argument("--list", action="store_true", help="list what there is to go back to, and do nothing")
    parser.add_argument("--step", type=iteration, metavar="N", help="go back to iteration N; default: the backup")
    parser.add_argument("--from", dest="name", metavar="NAME", help="go back to this folder of the list")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _restore(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.checkpoints.folder import CheckpointFolder
    from swapfast.checkpoints.snapshots import Snapshots, describe
    from swapfast.files import not_a_folder

    if not arguments.folder.is_dir():
        raise not_a_folder(arguments.folder, str(arguments.folder), "a model folder")
    checkpoints = CheckpointFolder(arguments.folder)
    snapshots = Snapshots(checkpoints)
    if arguments.list:
        points = snapshots.points()
        listing = {"folder": str(arguments.folder), "points": [point.to_dict() for point in points]}
        say(json.dumps(listing, indent=1) if arguments.json else describe(arguments.folder, points))
        return EXIT_DONE
    chosen = snapshots.find(arguments.step, arguments.name)
    with checkpoints.locked(complain):
        renamed = snapshots.restore(chosen)
    if arguments.json:
        aside = {old.name: new.name for old, new in renamed}
        say(json.dumps({"folder": str(arguments.folder), "step": chosen.step, "put_aside": aside}, indent=1))
        return EXIT_DONE
    for old, new in renamed:
        say(f"{old.name} is now {new.name}")
    say(f"training goes on from iteration {chosen.step} ({chosen.path.name})")
    return EXIT_DONE


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model-dir", type=path, required=True, metavar="DIR")
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument("--truth", type=path, metavar="DIR", help="true swaps: holds a/NAME and b/NAME")
    against.add_argument(
        "--test", action="store_true", help="the faces that train --test held out: how each side is reconstructed"
    )
    parser.add_argument("-A", "--input-A", type=path, metavar="DIR", help="with --test; default: as trained on")
    parser.add_argument("-B", "--input-B", type=path, metavar="DIR", help="with --test; default: as trained on")
    parser.add_argument(
        "--checkpoint",
        type=checkpoint,
        default="auto",
        metavar="N",
        help="the iteration to measure, newest, or best: the backup, see docs/running.md; default: best where "
        "--validation measured the swap, else newest",
    )
    add_weights(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _evaluate(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.checkpoints.trained import open_model
    from swapfast.device import pick_device
    from swapfast.swap.evaluate import evaluate

    folders = {"a": arguments.input_A, "b": arguments.input_B}
    if arguments.truth is not None and any(folders.values()):
        raise SwapfastError("-A/-B with --truth: the folder of true swaps holds both sides; leave them out")
    model, config, metadata = open_model(
        arguments.model_dir,
        arguments.checkpoint,
        pick_device(arguments.device),
        arguments.weights,
        arguments.exchange_codes,
    )
    for remark in metadata.remarks:
        complain(remark)
    if arguments.test:
        from pipelines.run.reconstruction import describe, reconstruct, to_dict, trained_folders

        with Bars() as bars:
            folders = trained_folders(metadata.state, folders)
            sides = reconstruct(model, config, folders, metadata.known_faces, bars, complain)
        say(json.dumps(to_dict(sides)) if arguments.json else describe(sides))
        return EXIT_DONE
    with Bars() as bars:
        mean_b = metadata.mean_faces["b"]
        result = evaluate(model, config, mean_b, arguments.truth, bars(f"decoding {arguments.truth}"))
    say(json.dumps(result.to_dict()) if arguments.json else result)
    return EXIT_DONE


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=path,
        metavar="SOURCE",
        help="of DeepFaceLab's SAEHD the folder, or FOLDER/NAME where it holds several models, an autobackup's folder "
        "too; of faceswap's original and lightweight the .keras file",
    )
    parser.add_argument("-m", "--model-dir", type=path, required=True, metavar="DIR", help="a new model folder")


def _import(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.interop.imported import check_new_model, write_model
    from swapfast.interop.sources import read_foreign

    checkpoints = check_new_model(arguments.model_dir)
    imported = read_foreign(arguments.source)
    write_model(imported, checkpoints)
    for line in (*imported.lines, imported.summary(arguments.model_dir)):
        say(line)
    return EXIT_DONE


def _add_codes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model-dir", type=path, required=True, metavar="DIR")
    parser.add_argument("-A", "--input-A", type=path, metavar="DIR", help="faces of A; default: as trained on")
    parser.add_argument("-B", "--input-B", type=path, metavar="DIR", help="faces of B; default: as trained on")
    parser.add_argument(
        "--comparable-poses",
        choices=("auto", "always", "off"),
        default="auto",
        help="exchange what both people's codes differ by at the same yaw, pitch and open mouth, see train; off: by "
        "what each folder shows on average; default auto",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _codes(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.run.codes import measure_codes
    from pipelines.run.reconstruction import trained_folders
    from swapfast.checkpoints.folder import model_folder
    from swapfast.checkpoints.trained import open_model
    from swapfast.device import pick_device

    chosen = {"a": arguments.input_A, "b": arguments.input_B}
    folders = trained_folders(open_model(arguments.model_dir).metadata.state, chosen, "-A and -B")
    checkpoints = model_folder(arguments.model_dir)
    with Bars() as bars, checkpoints.locked(complain):
        device = pick_device(arguments.device)
        step, faces = measure_codes(checkpoints, folders, device, arguments.comparable_poses, bars, complain)
    say(
        f"iteration {step} knows the codes of {faces['a']} faces of A and {faces['b']} of B; swaps exchange their means"
    )
    return EXIT_DONE


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def _models(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.models.figures import all_figures, describe

    figures = all_figures()
    if arguments.json:
        say(json.dumps([row.to_dict() for row in figures], indent=1))
        return EXIT_DONE
    say(describe(figures))
    say("\nWhere a model's own recipe differs from --recipe faceswap (whose value is in brackets):")
    for name in dict.fromkeys(row.name for row in figures):
        say(f"{name:<12} {', '.join(recipe_differences(name)) or 'nowhere'}")
    return EXIT_DONE


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _doctor(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.doctor import describe, examine

    report = examine()
    say(json.dumps(report, indent=1) if arguments.json else describe(report))
    return EXIT_DONE


def _completion(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    return completion.run(arguments.shell, _make_parser())


@dataclass(frozen=True)
class _Command:
    """A command: what its help says first, what adds its flags, and what runs it.

    settings: how the names of those begin that it takes, as flags and as variables.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, StopRequest], int]
    settings: tuple[str, ...] = ()


_COMMANDS = {
    "synthesize": _Command(
        "draw faces of two made-up people, with exact landmarks and masks", synthesize.add_arguments, synthesize.run
    ),
    "inspect": _Command(
        "say what a folder of faces holds, what it lacks, and list every bad file", inspect.add_arguments, inspect.run
    ),
    "extract": _Command("find, follow and align the faces of pictures and videos", extract.add_arguments, extract.run),
    "train": _Command("train a model on two folders of faces, or go on training it", _add_train, _train, ("",)),
    "prepare": _Command(
        "make a portable set of a folder's faces at training size", _add_prepare, _prepare, _PREPARE_SETTINGS
    ),
    "augment": _Command(
        "draw a contact sheet of what training will see of a folder", _add_augment, _augment, _AUGMENT_SETTINGS
    ),
    "cache": _Command("list what a model's cache folder holds, or clear it", _add_cache, _cache),
    "log": _Command("say how the training of a model went, and draw its losses", _add_log, _log),
    "preview": _Command(
        "open a window on a model folder, while it is trained and after", preview.add_arguments, preview.run
    ),
    "timelapse": _Command(
        "make a film of how a model learned, of the previews that it keeps", timelapse.add_arguments, timelapse.run
    ),
    "watch": _Command(
        "a page in the browser that follows model folders, while they are trained and after",
        watch.add_arguments,
        watch.run,
    ),
    "restore": _Command("go back to a backup, a snapshot or an older checkpoint of a model", _add_restore, _restore),
    "evaluate": _Command(
        "measure a model against known true swaps, or on the faces held out for the test", _add_evaluate, _evaluate
    ),
    "swap": _Command(
        "replace the faces of pictures by those that a trained model makes of them", swap.add_arguments, _swap
    ),
    "export": _Command("write a trained model as a file of another program", export.add_arguments, export.run),
    "import": _Command("make a model folder of another program's model, with its training state", _add_import, _import),
    "codes": _Command(
        "measure both people's codes, whose means the swap of a plain model exchanges", _add_codes, _codes
    ),
    "activations": _Command(
        "draw what a network makes of a face, stage by stage, for both sides",
        activations.add_arguments,
        activations.run,
    ),
    "models": _Command("list the models: sizes, parameters, work, memory, and what each is for", _add_models, _models),
    "doctor": _Command("say what this machine has and what will be used", _add_doctor, _doctor),
    "completion": _Command(
        "print what lets a shell complete commands, flags, values and paths", completion.add_arguments, _completion
    ),
}


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="swapfast",
        description=f"Train face-swap autoencoders, headless and fast.\n\n{USE}",
        epilog=f"{EXAMPLES}\n{VARIABLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    parser.commands = commands.choices
    for name, command in _COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.help,
            description=command.help,
            epilog="\n\n".join(filter(None, (examples_of(name), VARIABLES if command.settings else ""))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=command.run, settings=command.settings)
        command.add_arguments(added)
    return parser


def _parse(parser: _Parser, words: list[str]) -> argparse.Namespace:
    """Return what the command line asks for, with the settings in ``choice`` where the command takes some."""
    if words and not words[0].startswith("-") and words[0] not in parser.commands:
        raise unknown_name("command", words[0], parser.commands)
    parsed = parser.parse_all(words)
    if parsed.command is not None and parsed.settings:
        known = settings(TrainConfig())
        flags = {name: value for name, value in vars(parsed).items() if name in known and value is not None}
        parsed.choice = choose(flags, parsed.set, getattr(parsed, "config", None), os.environ, parsed.settings)
    return parsed


def _is_first() -> bool:
    """Whether this is the only process, or the one of torchrun's that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _run(arguments: Sequence[str] | None, stop: StopRequest) -> int:
    parser = _make_parser()
    try:
        parsed = _parse(parser, sys.argv[1:] if arguments is None else list(arguments))
    except SwapfastError as error:
        if _is_first():
            raise
        return error.code  # torchrun gives all processes the same words: one complains
    for note in parsed.choice.notes if "choice" in parsed and _is_first() else ():
        complain(f"swapfast: {note}")
    if parsed.command is None:
        parser.print_help()
        return EXIT_REQUEST
    with stop.listening():
        return parsed.run(parsed, stop)


def _missing_library(error: ImportError) -> str:
    """What to do about an import that failed."""
    if "libGL" in str(error) or "libgthread" in str(error):
        return (
            f"OpenCV needs a system library that is missing ({error}): install it (Debian, Ubuntu: apt-get install "
            "libgl1 libglib2.0-0), or swap the wheel: pip uninstall opencv-python, pip install opencv-python-headless"
        )
    return f"{error}: reinstall swapfast with its packages (pip install swapfast)"


def _refused(error: OSError) -> tuple[str, int]:
    """What the system refused, and whether the request or the machine is at fault."""
    ran_out = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENOMEM)
    return f"{error.filename or 'the system'}: {error.strerror or error}", EXIT_FAILED if ran_out else EXIT_REQUEST


def main(arguments: Sequence[str] | None = None, stop: StopRequest | None = None) -> int:
    """Run one command; returns its exit code (see swapfast/errors.py).

    stop: a request that listens already, as the program's does while this module is imported.
    """
    try:
        return _run(arguments, StopRequest() if stop is None else stop)
    except SwapfastError as error:
        message, code = str(error), error.code
    except ImportError as error:
        message, code = _missing_library(error), EXIT_FAILED
    except KeyboardInterrupt as error:
        message, code = stopped_line(error), EXIT_STOPPED
        if stop is not None:
            stop.leaving = True
    except OSError as error:
        message, code = _refused(error)
    except (MemoryError, RuntimeError) as error:
        from swapfast.training.memory import is_out_of_memory, memory_error

        if not is_out_of_memory(error):
            raise
        message, code = str(memory_error(error, ["work on fewer faces, or smaller ones"])), EXIT_FAILED
    if not message:
        return code  # another process has said why
    complain(f"swapfast: {message}")
    return code


if __name__ == "__main__":
    from swapfast.__main__ import main as run_program

    sys.exit(run_program())
