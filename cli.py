"""The command line: it translates arguments and prints results, nothing else."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swapfast import __version__
from swapfast.bars import Bars
from swapfast.config import TrainConfig, settings, updated
from swapfast.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, EXIT_STOPPED, SwapfastError, unknown_name
from swapfast.stop import StopRequest, parse_duration

if TYPE_CHECKING:
    from pipelines.run.request import Plan
    from swapfast.processes import Processes

USE = """\
Faces of real people: use swapfast only with the consent of everybody shown, never to deceive, harass or undress, and
label what you publish as synthetic."""

EXAMPLES = """\
examples:
  swapfast synthesize faces                                     made-up faces to try things out on
  swapfast inspect faces/a                                      what a folder holds, and every bad file
  swapfast train -A faces/a -B faces/b -m model -t tiny         train; the same command goes on after a stop
  swapfast evaluate -m model --truth faces/truth                how good the swap is, in dB
  swapfast prepare faces/a prepared/a --size 256                a portable set at training size; train takes it
  swapfast augment faces/a -o sheet.png                         what training will see of a folder
  swapfast cache model                                          what the next start need not decode again
  swapfast restore model --list                                 backups and snapshots to go back to
  swapfast log model -o losses.png                              how training went, in numbers and as a picture
"""


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that answer an unknown flag with the nearest known one."""

    def error(self, message: str) -> None:
        raise SwapfastError(message.removeprefix("argument "))

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        parsed, left = self.parse_known_args(arguments)
        if left and parsed.command is None:
            raise unknown_name("flag", left[0], [flag for action in self._actions for flag in action.option_strings])
        if left:
            command = self.commands[parsed.command]
            flags = [flag for action in command._actions for flag in action.option_strings]
            if left[0].startswith("-"):
                raise unknown_name(f"flag for {parsed.command}", left[0].split("=")[0], flags)
            raise SwapfastError(f"{parsed.command}: unexpected {left[0]!r}; see `swapfast {parsed.command} --help`")
        return parsed


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 0")
    return int(text)


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _renamed(flag: str, names: dict[str, str]) -> Callable[[str], str]:
    """A reader of names of which some are called otherwise now: the former ones are taken with a note."""

    def current(text: str) -> str:
        if text in names:
            print(f"swapfast: {flag} {text} is called {flag} {names[text]} now", file=sys.stderr)
        return names.get(text, text)

    return current


class _Bare(argparse.Action):
    """A list that means ``const`` where the flag stands alone."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values or self.const)


def _setting_default(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value


def _add_settings(
    parser: argparse.ArgumentParser,
    prefixes: tuple[str, ...] = ("",),
    title: str = "settings (a resumed model keeps its own unless they are given)",
) -> None:
    """One flag per setting that names one: its help, default and type come from the config."""
    group = parser.add_argument_group(title)
    for name, (field, default) in settings(TrainConfig()).items():
        if not field.metadata["flag"] or not name.startswith(prefixes):
            continue
        flags = field.metadata["flag"].split("/")
        help = field.metadata["help"].replace("%", "%%")
        if isinstance(default, bool):
            help = f"do not: {help[0].lower()}{help[1:]}" if default else help
            group.add_argument(*flags, dest=name, action="store_const", const=not default, help=help)
            continue
        bare = field.metadata["bare"]
        if bare is not None:
            what = name.rpartition(".")[2].upper()
            group.add_argument(*flags, dest=name, nargs="*", action=_Bare, const=bare, metavar=what, help=help)
            continue
        kind = type(default[0]) if isinstance(default, list) else type(default)
        group.add_argument(
            *flags,
            dest=name,
            type=kind,
            nargs="+" if isinstance(default, list) else None,
            metavar=name.rpartition(".")[2].upper(),
            help=f"{help} Default: {_setting_default(default)}".replace(". Default", "; default"),
        )
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting, such as loss.weights=[50]"
    )
    if prefixes != ("",):
        return
    group.add_argument("-C", "--config", type=Path, metavar="FILE", help="settings from a TOML file (--print-config)")


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="swapfast",
        description=f"Train face-swap autoencoders, headless and fast.\n\n{USE}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    parser.commands = commands.choices

    def command(name: str, run: Callable, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    make = command("synthesize", _synthesize, "draw faces of two made-up people, with exact landmarks and masks")
    make.add_argument("out", type=Path, metavar="OUT", help="a new folder: OUT/a, OUT/b, OUT/truth/a, OUT/truth/b")
    make.add_argument("--faces", type=int, default=300, help="faces per side; default 300")
    make.add_argument("--size", type=int, default=256, help="edge in px; default 256")
    make.add_argument("--pairs", type=int, default=40, help="true swaps; default 40")
    make.add_argument("--seed", type=int, default=1, help="the people follow from it; default 1")

    look = command("inspect", _inspect, "say what a folder of faces or a prepared set holds and list every bad file")
    look.add_argument("folder", type=Path, metavar="FOLDER")
    look.add_argument("--json", action="store_true", help="print one JSON object")

    train = command("train", _train_together, "train a model on two folders of faces, or go on training it")
    train.add_argument("-A", "--input-A", type=Path, required=True, metavar="DIR", help="faces of A, who gets replaced")
    train.add_argument("-B", "--input-B", type=Path, required=True, metavar="DIR", help="faces of B")
    train.add_argument("-m", "--model-dir", type=Path, required=True, metavar="DIR", help="where the model is kept")
    train.add_argument(
        "-i", "--iterations", type=_positive, default=1_000_000, help="train up to this many in all; default 1000000"
    )
    train.add_argument(
        "-s", "--save-interval", type=_positive, default=250, help="iterations between saves; default 250"
    )
    train.add_argument(
        "-I",
        "--snapshot-interval",
        type=_not_negative,
        default=25000,
        help="iterations between snapshots, checkpoints that are never dropped; 0 for none; default 25000",
    )
    train.add_argument(
        "--after-save",
        metavar="CMD",
        help="run this shell command after every save, beside the training, with SWAPFAST_MODEL_DIR, "
        "SWAPFAST_CHECKPOINT and SWAPFAST_STEP among its variables: to copy the model elsewhere",
    )
    train.add_argument("--stop-file", type=Path, metavar="FILE", help="save and stop, with code 3, when FILE appears")
    train.add_argument(
        "--max-time",
        type=_duration,
        metavar="TIME",
        help="save and stop, with code 3, after so long, the start included: seconds, or such as 3h30m",
    )
    train.add_argument(
        "-z",
        "--timelapse-output",
        type=Path,
        nargs="?",
        const=True,
        metavar="DIR",
        help="timelapse: add a picture like the preview to this folder at every save; default MODEL/timelapse, where "
        "-z stands alone or -x and -y are given",
    )
    train.add_argument(
        "-x",
        "--timelapse-input-A",
        type=Path,
        metavar="DIR",
        help="faces of A for the timelapse; default the preview's",
    )
    train.add_argument(
        "-y",
        "--timelapse-input-B",
        type=Path,
        metavar="DIR",
        help="faces of B for the timelapse; default the preview's",
    )
    train.add_argument("-n", "--no-logs", action="store_true", help="write no logs for TensorBoard and `swapfast log`")
    train.add_argument(
        "--resume", choices=("auto", "never", "must"), default="auto", help="go on with the model there; default auto"
    )
    train.add_argument(
        "--override",
        action="store_true",
        help="accept another value of a setting that is fixed once a model exists, where that is possible",
    )
    train.add_argument(
        "-l",
        "--load-weights",
        type=Path,
        metavar="DIR",
        help="begin a new model with the weights of this one, or of one of its snapshots, as far as they fit",
    )
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    train.add_argument(
        "--compile",
        action="store_true",
        help="compile the model and, with the torch backend, the augmentation by torch: a slower start, faster steps",
    )
    train.add_argument(
        "--backend",
        choices=("auto", "opencv", "torch"),
        type=_renamed("--backend", {"device": "torch"}),
        default="auto",
        help="where faces are augmented",
    )
    train.add_argument(
        "-r",
        "--lr-finder",
        action="store_true",
        help="look for a learning rate first, once per model, and train at it instead of --learning-rate; what was "
        "found is kept in MODEL/lr_finder.json, the curve in lr_finder.png (--lr-finder-mode)",
    )
    train.add_argument("--skip-bad", action="store_true", help="leave bad files out instead of stopping")
    train.add_argument(
        "--cache",
        choices=("auto", "gpu", "host", "off"),
        type=_renamed("--cache", {"device": "gpu"}),
        default="auto",
        help="where decoded faces are kept: in GPU memory, in a mapped file that the next run reuses, or nowhere; "
        "default auto: the first of these that has room",
    )
    train.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="folder of that file, shared by models; default MODEL/cache"
    )
    train.add_argument(
        "-u", "--summary", action="store_true", help="print the network's layers, shapes and parameters, and stop"
    )
    train.add_argument("--print-config", action="store_true", help="print all settings as TOML and stop")
    _add_settings(train)

    ready = command("prepare", _prepare, "make a portable set of a folder's faces at training size")
    ready.add_argument("folder", type=Path, metavar="FOLDER")
    ready.add_argument("out", type=Path, metavar="OUT", help="a new folder, to be given to train -A or -B")
    ready.add_argument(
        "--format",
        choices=("jpeg", "raw"),
        default="jpeg",
        help="jpeg: 4:4:4, quality 98, which a GPU decodes itself; raw: lossless, several times as large; default jpeg",
    )
    ready.add_argument("--size", type=_positive, default=256, help="edge in px; default 256")
    ready.add_argument("--skip-bad", action="store_true", help="leave bad files out instead of stopping")
    _add_settings(ready, ("crop.", "mask."), "settings (as for train)")

    sheet = command("augment", _augment, "draw a contact sheet of what training will see of a folder")
    sheet.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of faces, or a prepared set")
    sheet.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the picture: .png or .jpg")
    sheet.add_argument("-B", "--input-B", type=Path, metavar="DIR", help="warp to landmarks of these; default FOLDER")
    sheet.add_argument("--size", type=_positive, default=256, help="edge in px; default 256")
    sheet.add_argument("--faces", type=_positive, default=8, help="rows; default 8")
    sheet.add_argument(
        "--percentile", type=float, metavar="P", help="pin every draw there, such as 1, 50 or 99, to see the extremes"
    )
    sheet.add_argument("--skip-bad", action="store_true", help="leave bad files out instead of stopping")
    _add_settings(sheet, ("crop.", "mask.", "augmentation.", "seed"), "settings (as for train)")

    cache = command("cache", _cache, "list what a model's cache folder holds, or clear it")
    cache.add_argument("folder", type=Path, metavar="DIR", help="a model folder, or the folder given to --cache-dir")
    cache.add_argument("--clear", action="store_true", help="remove all of it: the next start decodes again")
    cache.add_argument("--json", action="store_true", help="print one JSON object")

    log = command("log", _log, "say how the training of a model went, and draw its losses")
    log.add_argument("folder", type=Path, metavar="MODEL", help="a model folder")
    log.add_argument("-o", "--out", type=Path, metavar="FILE", help="draw the losses into this PNG")
    log.add_argument("--json", action="store_true", help="print one JSON object")

    back = command("restore", _restore, "go back to a backup, a snapshot or an older checkpoint of a model")
    back.add_argument("folder", type=Path, metavar="MODEL", help="a model folder that nobody trains in")
    back.add_argument("--list", action="store_true", help="list what there is to go back to, and do nothing")
    back.add_argument("--step", type=_not_negative, metavar="N", help="go back to iteration N; default: the backup")
    back.add_argument("--from", dest="name", metavar="NAME", help="go back to this folder of the list")
    back.add_argument("--json", action="store_true", help="print one JSON object")

    judge = command("evaluate", _evaluate, "measure a model against known true swaps")
    judge.add_argument("-m", "--model-dir", type=Path, required=True, metavar="DIR")
    judge.add_argument("--truth", type=Path, required=True, metavar="DIR", help="holds a/NAME and b/NAME")
    judge.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    judge.add_argument("--json", action="store_true", help="print one JSON object")

    doctor = command("doctor", _doctor, "say what this machine has and what will be used")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _synthesize(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.synthetic import synthesize

    with Bars() as bars:
        spread = synthesize(
            arguments.out,
            arguments.faces,
            arguments.size,
            arguments.pairs,
            arguments.seed,
            progress=bars("drawing faces"),
        )
    print(f"{arguments.faces} faces per side and {arguments.pairs} true swaps in {arguments.out}: {spread}")
    return EXIT_DONE


def _inspect(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.faces.folder import describe, inspect_folder
    from swapfast.faces.prepared import inspect_prepared, is_prepared

    folder = arguments.folder
    with Bars() as bars:
        decoding = bars(f"decoding {folder}")
        if is_prepared(folder):
            report = inspect_prepared(folder, progress=decoding)
        else:
            report = inspect_folder(folder, progress=decoding, scanning=bars(f"reading {folder}"))
    print(json.dumps(report, indent=1) if arguments.json else describe(report))
    return EXIT_FAILED if report["bad"] else EXIT_DONE


def _timelapse(arguments: argparse.Namespace) -> dict[str, object]:
    """What a TrainRequest says of it."""
    side_a, side_b, out = arguments.timelapse_input_A, arguments.timelapse_input_B, arguments.timelapse_output
    if (side_a is None) != (side_b is None):
        flags = ("--timelapse-input-A", "--timelapse-input-B")
        given, missing = flags if side_b is None else flags[::-1]
        raise SwapfastError(f"{given} {side_a or side_b}: give {missing} too, or neither for the faces of the preview")
    if side_a is None and out is None:
        return {}
    folder = out if isinstance(out, Path) else arguments.model_dir / "timelapse"
    return {"timelapse": folder, "timelapse_inputs": () if side_a is None else (side_a, side_b)}


def _changes(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings given as flags or with --set, by dotted name."""
    given = {n: v for n, v in vars(arguments).items() if v is not None and n in settings(TrainConfig())}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise SwapfastError(f"--set {text}: give it as NAME=VALUE")
        try:
            given[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            given[name.strip()] = value
    functions = given.get("loss.functions")
    if isinstance(functions, list):
        given.setdefault("loss.weights", [100.0] * len(functions))
    return given


def _train_together(arguments: argparse.Namespace, stop: StopRequest) -> int:
    """``_train`` as one of the processes that torchrun started, or as the only one."""
    from swapfast.processes import join_processes

    watching = stop.watching(arguments.stop_file, arguments.max_time)
    with join_processes(arguments.device) as processes, watching:
        return _train(arguments, stop, processes)


def _less_memory(arguments: argparse.Namespace, plan: Plan, on_gpu: bool) -> list[str]:
    """Flags that need less memory than what is planned."""
    ways = ["train with a smaller -b"]
    if on_gpu:
        ways += ["--precision bf16"] * (plan.precision == "fp32")
        ways += ["--cache host"] * (arguments.cache in ("auto", "gpu"))
    else:
        ways += ["--cache host"] * (arguments.cache == "gpu")
        ways += ["--cache off"] * (arguments.cache in ("auto", "host"))
    model = plan.config.model
    return ways + ["start a new model with --lowmem"] * (model.name == "original" and not model.lowmem)


def _train(arguments: argparse.Namespace, stop: StopRequest, processes: Processes) -> int:
    config = TrainConfig.from_toml(arguments.config) if arguments.config else TrainConfig()
    changes = _changes(arguments)
    if arguments.config:
        changes = {name: value for name, (_, value) in settings(config).items()} | changes
    wanted = updated(config, changes)
    log = functools.partial(print, flush=True) if processes.is_first else lambda line: None
    if arguments.print_config:
        log(wanted.to_toml().rstrip("\n"))
        return EXIT_DONE

    from pipelines.run.build import build_trainer, find_rate
    from pipelines.run.plan import describe_model, plan_run
    from pipelines.run.request import TrainRequest
    from swapfast.processes import exit_code_when_stopped
    from swapfast.training.memory import memory_explained

    request = TrainRequest(
        input_a=arguments.input_A,
        input_b=arguments.input_B,
        model_dir=arguments.model_dir,
        config=config,
        changes=changes,
        iterations=arguments.iterations,
        save_interval=arguments.save_interval,
        resume=arguments.resume,
        device=arguments.device,
        backend=arguments.backend,
        skip_bad=arguments.skip_bad,
        logs=not arguments.no_logs,
        cache_mode=arguments.cache,
        cache_dir=arguments.cache_dir,
        lr_finder=arguments.lr_finder,
        snapshot_interval=arguments.snapshot_interval,
        override=arguments.override,
        load_weights=arguments.load_weights,
        after_save=arguments.after_save,
        compile=arguments.compile,
        **_timelapse(arguments),
    )
    if arguments.summary:
        log(describe_model(request))
        return EXIT_DONE
    with Bars(processes.is_first) as bars:
        plan = plan_run(request, bars, processes)
        if plan.step >= request.iterations and not plan.only_graph:
            processes.publish_files_ready()
            log(f"{plan.step} iterations are trained already; give a larger -i to train on")
            return EXIT_DONE
    explained = memory_explained(functools.partial(_less_memory, arguments, plan))
    with explained, plan.checkpoints.locked() if processes.is_first else contextlib.nullcontext():
        with Bars(processes.is_first) as bars:
            trainer = build_trainer(plan, stop, log, bars)
            if plan.finds_rate:
                find_rate(plan, trainer, log, bars("looking for a learning rate"))
        if plan.only_graph:
            return exit_code_when_stopped() if stop else EXIT_DONE
        trainer.train()
    if trainer.unwarped:
        log(
            f"{trainer.unwarped} of {trainer.faces} faces could not be warped to landmarks (theirs, or those of the "
            "face to warp to, lie on one line, in one place or far outside) and were fed unwarped"
        )
    if stop:
        code = exit_code_when_stopped()
        why = "; code 0, so that torchrun does not restart it" if code == EXIT_DONE else ""
        log(f"stopped by {stop.reason} and saved at iteration {trainer.step}; the same command goes on from there{why}")
        return code
    log(f"done: {trainer.step} iterations in {arguments.model_dir}; look at {arguments.model_dir / 'preview.png'}")
    return EXIT_DONE


def _prepare(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.prepare import prepare

    config = updated(TrainConfig(), _changes(arguments))
    with Bars() as bars:
        report = prepare(
            arguments.folder,
            arguments.out,
            arguments.format,
            arguments.size,
            config.crop,
            config.mask,
            arguments.skip_bad,
            progress=bars(f"preparing {arguments.folder}"),
            scanning=bars(f"reading {arguments.folder}"),
        )
    left = f", {len(report.bad)} bad files left out" if report.bad else ""
    per_face = report.bytes / report.faces / 1024
    print(f"{report.faces} faces at {arguments.size} px in {arguments.out}: {per_face:.0f} KiB each{left}")
    return EXIT_DONE


def _augment(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.sheet import SheetRequest, make_sheet

    config = updated(TrainConfig(), _changes(arguments))
    request = SheetRequest(
        arguments.folder,
        arguments.out,
        config,
        arguments.input_B,
        arguments.size,
        arguments.faces,
        arguments.percentile,
        arguments.skip_bad,
    )
    with Bars() as bars:
        unwarped = make_sheet(request, bars, functools.partial(print, file=sys.stderr))
    note = f" ({unwarped} of its faces cannot be warped to landmarks)" if unwarped else ""
    print(f"look at {arguments.out}{note}")
    return EXIT_DONE


def _cache(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.cache import clear_cache, describe_cache, list_cache

    inside = arguments.folder / "cache"
    folder = inside if inside.is_dir() else arguments.folder
    found = list_cache(folder)
    if arguments.json:
        print(json.dumps({"folder": str(folder), "files": found}, indent=1))
    else:
        print(describe_cache(folder, found))
    if arguments.clear:
        freed = clear_cache(folder)
        print(f"removed {len(found)} files, {freed / 2**20:.1f} MiB", file=sys.stderr if arguments.json else sys.stdout)
    return EXIT_DONE


def _log(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.files import check_new_file, write_file
    from swapfast.logs.loss_plot import draw_losses
    from swapfast.logs.summary import describe, load_history, summarise

    if arguments.out:
        check_new_file(arguments.out, "-o/--out", (".png",))
    history = load_history(arguments.folder)
    summary = summarise(history)
    print(json.dumps(summary, indent=1) if arguments.json else describe(summary, arguments.folder))
    if arguments.out:
        write_file(arguments.out, draw_losses(history, arguments.folder.resolve().name))
    return EXIT_DONE


def _restore(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.checkpoints.folder import CheckpointFolder
    from swapfast.checkpoints.snapshots import Snapshots, describe

    if not arguments.folder.is_dir():
        raise SwapfastError(f"{arguments.folder}: {'is a file' if arguments.folder.exists() else 'no such folder'}")
    checkpoints = CheckpointFolder(arguments.folder)
    kept = Snapshots(checkpoints)
    if arguments.list:
        points = kept.points()
        found = {"folder": str(arguments.folder), "points": [point.to_dict() for point in points]}
        print(json.dumps(found, indent=1) if arguments.json else describe(arguments.folder, points))
        return EXIT_DONE
    chosen = kept.find(arguments.step, arguments.name)
    with checkpoints.locked():
        moved = kept.restore(chosen)
    if arguments.json:
        aside = {old.name: new.name for old, new in moved}
        print(json.dumps({"folder": str(arguments.folder), "step": chosen.step, "put_aside": aside}, indent=1))
        return EXIT_DONE
    for old, new in moved:
        print(f"{old.name} is now {new.name}")
    print(f"training goes on from iteration {chosen.step} ({chosen.path.name})")
    return EXIT_DONE


def _evaluate(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from swapfast.checkpoints.trained import load_model
    from swapfast.device import pick_device
    from swapfast.swap.evaluate import evaluate

    model, config, mean_b = load_model(arguments.model_dir, pick_device(arguments.device))
    with Bars() as bars:
        result = evaluate(model, config, mean_b, arguments.truth, bars(f"decoding {arguments.truth}"))
    print(json.dumps(result.to_dict()) if arguments.json else result)
    return EXIT_DONE


def _doctor(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipelines.doctor import describe, examine

    report = examine()
    print(json.dumps(report, indent=1) if arguments.json else describe(report))
    return EXIT_DONE


def _parse(parser: _Parser, given: list[str]) -> argparse.Namespace:
    if given and not given[0].startswith("-") and given[0] not in parser.commands:
        raise unknown_name("command", given[0], parser.commands)
    return parser.parse_all(given)


def _run(arguments: Sequence[str] | None) -> int:
    parser = _make_parser()
    try:
        parsed = _parse(parser, sys.argv[1:] if arguments is None else list(arguments))
    except SwapfastError as error:
        if os.environ.get("RANK", "0") == "0":
            raise
        return error.code  # torchrun gives all processes the same words: one complains
    if parsed.command is None:
        parser.print_help()
        return EXIT_REQUEST
    with StopRequest().listening() as stop:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see swapfast/errors.py)."""
    try:
        return _run(arguments)
    except SwapfastError as error:
        message, code = str(error), error.code
    except ImportError as error:
        message, code = _missing_library(error), EXIT_FAILED
    except KeyboardInterrupt as error:
        by = f" by {error}" if str(error) else ""
        message, code = f"stopped{by} before anything new was saved; the same command begins again", EXIT_STOPPED
    except OSError as error:
        message, code = _refused(error)
    except (MemoryError, RuntimeError) as error:
        from swapfast.training.memory import is_out_of_memory, memory_error

        if not is_out_of_memory(error):
            raise
        message, code = str(memory_error(error, ["work on fewer faces, or smaller ones"])), EXIT_FAILED
    if not message:
        return code  # another process has said why
    with contextlib.suppress(OSError):
        print(f"swapfast: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
