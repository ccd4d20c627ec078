"""`swapfast swap`: the faces of pictures replaced by those that a trained model makes of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapfast.commands.argument_types import amount, checkpoint, index, path, positive
from swapfast.commands.setting_flags import flag_arguments
from swapfast.commands.weights import add_weights
from swapfast.errors import EXIT_DONE, EXIT_STOPPED, SwapfastError
from swapfast.options import settings
from swapfast.printing import complain, say
from swapfast.stop import StopRequest
from swapfast.video.probe import is_video

if TYPE_CHECKING:
    import numpy as np

    from swapfast.swap.picture_file import PictureDecoder
    from swapfast.swap.request import PicturePlan, SwapRequest
    from swapfast.swap.run_video import VideoSettings

    OpenDecoder = Callable[[str, str, int], PictureDecoder | None]

SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("-m", "--model-dir", type=path, required=True, metavar="DIR")
    parser.add_argument("-i", "--input", type=path, metavar="IN", help="a folder of frames, one picture, or a video")
    parser.add_argument(
        "-o",
        "--out",
        type=path,
        metavar="OUT",
        help="a new folder, or one to go on with; of a video a .mp4, .mov or .mkv too",
    )
    _add_faces(parser.add_argument_group("faces"))
    _add_range(parser, parser.add_argument_group("what is swapped"))
    _add_looks(parser.add_argument_group("how it looks"))
    _add_videos(parser.add_argument_group("videos"))
    _add_output(parser.add_argument_group("what is written"))


def _add_faces(group: argparse._ArgumentGroup) -> None:
    from swapfast.swap.settings import ORDERS

    group.add_argument(
        "-p",
        "--faces",
        type=path,
        metavar="FACES",
        help="faceswap's extracted faces: their headers say which frame has which; those deleted are not swapped. "
        "Without it and --landmarks: NAME.json beside each frame",
    )
    group.add_argument("--landmarks", type=path, metavar="FILE", help="landmarks as JSON lines, see docs/swap.md")
    group.add_argument("--mask-dir", type=path, metavar="DIR", help="NAME.png for each frame: black is in front of it")
    group.add_argument("--face", choices=ORDERS, default="all", help="which face of a frame; default: all")
    group.add_argument("--face-index", type=index, nargs="+", default=[], metavar="N", help="only these, from 0")
    group.add_argument("--min-size", type=amount, default=0.0, metavar="PX", help="of a face's crop in the frame")
    group.add_argument("--max-size", type=amount, default=float("inf"), metavar="PX", help="of a face's crop")


def _add_range(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> None:
    from swapfast.swap.settings import DECODERS

    group.add_argument(
        "--to", type=str.lower, default=None, metavar="SIDE", help="whose face comes out, a or b; default b"
    )
    group.add_argument("-s", "--swap-model", action="store_true", help="the other way: --to a")
    group.add_argument("-R", "--frame-ranges", nargs="+", metavar="N-M", help="frames to swap, such as 10-50 90-")
    group.add_argument("-k", "--keep-unchanged", action="store_true", help="write the frames outside of the ranges too")
    group.add_argument(
        "--checkpoint",
        type=checkpoint,
        default="auto",
        metavar="N",
        help="an iteration, newest or best; default: best where --validation measured the swap, else newest",
    )
    add_weights(parser)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1; default auto")
    group.add_argument("--batch-size", type=positive, default=16, metavar="N", help="faces at a time; default 16")
    kinds = "; ".join(f"{name}: {purpose}" for name, purpose in DECODERS.items())
    group.add_argument("--decoder", metavar="NAME", help=f"of pictures. {kinds}; default auto")
    group.add_argument("--workers", type=positive, metavar="N", help="threads beside the model; default: one a core")


def _add_looks(group: argparse._ArgumentGroup) -> None:
    from swapfast.swap.chosen import PRESETS
    from swapfast.swap.settings import SwapSettings

    group.add_argument(
        "-C", "--config", type=path, metavar="FILE", help="these settings from a TOML file, also by ranges"
    )
    group.add_argument(
        "--preset", choices=PRESETS, default="none", help="where another program starts; flags rank over it"
    )
    group.add_argument("--print-config", action="store_true", help="print these settings as TOML and stop")
    for name, setting in settings(SwapSettings()).items():
        group.add_argument(*setting.option.flag.split("/"), dest=name, default=None, **flag_arguments(name, setting))


def _add_videos(group: argparse._ArgumentGroup) -> None:
    from swapfast.video.encoding import CODECS, CRF, DEFAULT_CRF, DEFAULT_PRESET, PRESETS
    from swapfast.video.writer import SEGMENT_FRAMES

    group.add_argument(
        "--smooth", type=index, metavar="N", help="colours over N frames on either side, 0: not at all; default 12"
    )
    group.add_argument(
        "--smooth-landmarks", type=index, metavar="N", help="landmarks over N frames on either side; default 3"
    )
    group.add_argument(
        "--segment", type=index, metavar="N", help=f"frames that a killed run loses at most; default {SEGMENT_FRAMES}"
    )
    kinds = "; ".join(f"{name}: {purpose}" for name, purpose in CODECS.items())
    group.add_argument("--codec", metavar="CODEC", help=f"{kinds}; default auto")
    group.add_argument(
        "--crf",
        type=index,
        metavar="N",
        help=f"{CRF[0]} (best) to {CRF[1]}; {DEFAULT_CRF} shows no loss; default {DEFAULT_CRF}",
    )
    group.add_argument(
        "--encoder-preset", metavar="NAME", help=f"of x264 and x265: {', '.join(PRESETS)}; default {DEFAULT_PRESET}"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-O", "--output-scale", type=amount, default=100.0, metavar="PERCENT", help="default 100")
    group.add_argument("-w", "--writer", default="picture", help="picture, or patch: faces, masks and matrices alone")
    group.add_argument("--format", default="same", help="png or jpg; default: each picture's own")
    group.add_argument("--write-mask", action="store_true", help="each frame's mask too, in OUT/masks")
    group.add_argument("--transparent", action="store_true", help="the faces alone, on nothing, as PNG with alpha")
    group.add_argument("--overwrite", action="store_true", help="make everything anew in a folder that is not empty")
    group.add_argument("--report", type=path, metavar="FILE", help="numbers of the run: faces, time by stage; .json")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("--check", action="store_true", help="say what would be done, and do nothing")
    group.add_argument(
        "--sheet",
        type=path,
        metavar="FRAME",
        help="draw one frame, a picture or with -i VIDEO its number, with every mask and colour into -o sheet.png",
    )


def run(arguments: argparse.Namespace, _stop: StopRequest, open_decoder: OpenDecoder | None = None) -> int:
    """Swap as the command line asks for; return the exit code. open_decoder: of pictures, None for the library's own.

    It is called with --decoder, the device's name and the number of threads.
    """
    from swapfast.swap.chosen import choose_settings
    from swapfast.swap.settings import SwapSettings

    flags = {name: getattr(arguments, name) for name in settings(SwapSettings())}
    flags = {name: value for name, value in flags.items() if value is not None}
    given_settings = choose_settings(flags, arguments.config, arguments.preset)
    if arguments.print_config:
        say(given_settings.usual.to_toml().rstrip("\n"))
        return EXIT_DONE
    request = _request(arguments, given_settings)
    if is_video(request.input):
        if arguments.decoder is not None:
            raise SwapfastError("--decoder: is for pictures, and the input is a video; leave it away")
        return _video(arguments, request)
    _refuse_video_flags(arguments)
    if arguments.sheet is not None:
        return _sheet(arguments, request)
    return _check(arguments, request) if arguments.check else _swap(arguments, request, open_decoder)


def _request(arguments: argparse.Namespace, given_settings: Any) -> SwapRequest:
    from swapfast.swap.chosen import FrameRanges
    from swapfast.swap.found_faces import FaceChoice
    from swapfast.swap.request import SwapRequest

    if arguments.swap_model and arguments.to not in (None, "a"):
        raise SwapfastError(f"-s/--swap-model with --to {arguments.to}: -s means --to a; leave one of them out")
    is_sheet_of_video = arguments.input is not None and is_video(arguments.input)
    source = arguments.sheet if arguments.sheet is not None and not is_sheet_of_video else arguments.input
    if source is None:
        raise SwapfastError("required: -i/--input, a folder of frames")
    if arguments.out is None and not arguments.check:
        raise SwapfastError("required: -o/--out; or --check, which writes nothing")
    ranges = arguments.frame_ranges
    return SwapRequest(
        model_dir=arguments.model_dir,
        input=source,
        out=None if arguments.sheet is not None else arguments.out,
        faces=arguments.faces,
        landmarks=arguments.landmarks,
        mask_dir=arguments.mask_dir,
        settings=given_settings,
        to="a" if arguments.swap_model else arguments.to or "b",
        checkpoint=arguments.checkpoint,
        weights=arguments.weights,
        exchange_codes=arguments.exchange_codes,
        device=arguments.device,
        choice=FaceChoice(arguments.face, tuple(arguments.face_index), arguments.min_size, arguments.max_size),
        ranges=None if ranges is None else FrameRanges.parse(ranges),
        keep_unchanged=arguments.keep_unchanged,
        scale=arguments.output_scale,
        writer=arguments.writer,
        write_mask=arguments.write_mask,
        transparent=arguments.transparent,
        format=arguments.format,
        overwrite=arguments.overwrite,
        report=arguments.report,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        decoder=arguments.decoder or "auto",
    )


def _plan(request: SwapRequest) -> PicturePlan:
    from swapfast.swap.request import plan_pictures

    plan = plan_pictures(request)
    for remark in (*plan.opened.metadata.remarks, *getattr(plan.find, "remarks", ())):
        complain(remark)
    return plan


def _check(arguments: argparse.Namespace, request: SwapRequest) -> int:
    from swapfast.bars import Bars
    from swapfast.swap.check import check_pictures, describe_check

    plan = _plan(request)
    with Bars() as bars:
        result = check_pictures(plan, bars(f"reading {request.input}"))
    say(json.dumps(result, indent=1) if arguments.json else "\n".join(describe_check(result)))
    return EXIT_DONE


def _swap(arguments: argparse.Namespace, request: SwapRequest, open_decoder: OpenDecoder | None) -> int:
    from swapfast.bars import Bars
    from swapfast.swap.report import describe
    from swapfast.swap.run import swap_pictures
    from swapfast.system import available_cores

    plan = _plan(request)
    decoder = None
    if open_decoder is not None:
        device = next(plan.opened.model.parameters()).device
        decoder = open_decoder(request.decoder, str(device), request.workers or available_cores())
    try:
        with Bars() as bars:
            report = swap_pictures(plan, bars("swapping faces"), decoder)
    except KeyboardInterrupt as error:
        by = f" by {error}" if str(error) else ""
        complain(f"swapfast: stopped{by}; the frames that are in {request.out} are whole, and the same command goes on")
        return EXIT_STOPPED
    say(json.dumps(report, indent=1) if arguments.json else "\n".join(describe(report)))
    return EXIT_DONE


def _sheet(arguments: argparse.Namespace, request: SwapRequest) -> int:
    """Draw one frame with every mask and colour."""
    from swapfast.files import check_new_file
    from swapfast.swap.frames import Frame
    from swapfast.swap.picture_file import read_picture
    from swapfast.swap.pipeline import crop_edge
    from swapfast.swap.sheet import draw_sheet

    out = arguments.out
    check_new_file(out, "-o/--out", SHEET_SUFFIXES)
    if not request.input.is_file():
        raise SwapfastError(f"--sheet {request.input}: is no picture; give one frame")
    if out.exists() and out.samefile(request.input):
        raise SwapfastError(f"-o/--out {out}: is the frame itself; give another name for the sheet")
    plan = _plan(request)
    try:
        pixels, origin = read_picture(request.input)
    except ValueError as error:
        raise SwapfastError(f"--sheet {request.input}: {error}; give another frame") from error
    frame = Frame(request.input.name, 0, None, pixels, origin=origin)
    swapper = plan.swapper(scale=1.0, wants_patches=False, is_transparent=False)
    frame_faces = plan.find(frame)
    faces, skipped = request.choice(frame_faces, frame, [crop_edge(face, swapper) for face in frame_faces.faces])
    if not faces:
        reason = f" ({'; '.join(skipped)})" if skipped else ""
        raise SwapfastError(f"--sheet {request.input}: has no face to swap{reason}; give another frame")
    face = max(faces, key=lambda f: crop_edge(f, swapper))
    title = f"{request.input.name}, {plan.opened.model.name} at iteration {plan.opened.metadata.step}, to {request.to}"
    _write_sheet(out, draw_sheet(swapper, frame, face, request.settings.of(plan.numbers[0]), title))
    return EXIT_DONE


def _write_sheet(out: Path, sheet: np.ndarray) -> None:
    import cv2

    from swapfast.files import write_file
    from swapfast.swap.marking import mark_jpeg, mark_png

    suffix = ".png" if out.suffix.lower() == ".png" else ".jpg"
    data = cv2.imencode(suffix, sheet)[1].tobytes()
    write_file(out, mark_png(data) if suffix == ".png" else mark_jpeg(data))
    say(f"look at {out}")


_VIDEO_FLAGS = {"smooth": "--smooth", "smooth_landmarks": "--smooth-landmarks", "codec": "--codec", "crf": "--crf"}
_VIDEO_FLAGS |= {"segment": "--segment", "encoder_preset": "--encoder-preset"}


def _refuse_video_flags(arguments: argparse.Namespace) -> None:
    for name, flag in _VIDEO_FLAGS.items():
        if getattr(arguments, name) is not None:
            raise SwapfastError(f"{flag}: is for videos, and the input is pictures; leave it away")


def _video_settings(arguments: argparse.Namespace) -> VideoSettings:
    from swapfast.swap.run_video import VideoSettings
    from swapfast.video.encoding import EncodeSettings

    settings = {name: value for name in _VIDEO_FLAGS if (value := getattr(arguments, name)) is not None}
    encode = {
        new: settings.pop(name)
        for name, new in (("codec", "codec"), ("crf", "crf"), ("encoder_preset", "preset"))
        if name in settings
    }
    return VideoSettings(**settings, encode=EncodeSettings(**encode))


def _video(arguments: argparse.Namespace, request: SwapRequest) -> int:
    """Swap the faces of a video, or say what would be done."""
    from swapfast.bars import Bars
    from swapfast.swap.check import describe_check
    from swapfast.swap.report import describe
    from swapfast.swap.run_video import check_video, plan_video, swap_video, swap_video_to_pictures, writes_pictures

    settings = _video_settings(arguments)
    if arguments.sheet is not None:
        return _video_sheet(arguments, request, settings)
    try:
        with Bars() as bars:
            plan = plan_video(request, settings, bars(f"reading {request.input}, seconds"))
        for remark in (*plan.opened.metadata.remarks, *plan.table.remarks):
            complain(remark)
        if arguments.check:
            result = check_video(plan)
            say(json.dumps(result, indent=1) if arguments.json else "\n".join(describe_check(result)))
            return EXIT_DONE
        with Bars() as bars:
            run_it = swap_video_to_pictures if writes_pictures(request) else swap_video
            report = run_it(plan, bars("swapping faces, seconds"))
    except KeyboardInterrupt as error:
        by = f" by {error}" if str(error) else ""
        complain(f"swapfast: stopped{by}; finished parts of {request.out} are kept, and the same command goes on")
        return EXIT_STOPPED
    for note in report["video"]["notes"]:
        complain(note)
    say(json.dumps(report, indent=1) if arguments.json else "\n".join(describe(report)))
    return EXIT_DONE


def _video_sheet(arguments: argparse.Namespace, request: SwapRequest, settings: VideoSettings) -> int:
    """Draw one frame of a video with every mask and colour."""
    from swapfast.bars import Bars
    from swapfast.files import check_new_file
    from swapfast.swap.pipeline import crop_edge
    from swapfast.swap.run_video import plan_video, sheet_of_video
    from swapfast.swap.sheet import draw_sheet

    text = str(arguments.sheet)
    if not text.isdecimal() or len(text) > 9:
        raise SwapfastError(f"--sheet {arguments.sheet}: give the number of a frame of {request.input}, from 1")
    check_new_file(arguments.out, "-o/--out", SHEET_SUFFIXES)
    with Bars() as bars:
        plan = plan_video(request, settings, bars(f"reading {request.input}, seconds"))
    frame, frame_faces = sheet_of_video(plan, int(text))
    swapper = plan.swapper()
    face = max(frame_faces.faces, key=lambda f: crop_edge(f, swapper))
    metadata = plan.opened.metadata
    title = (
        f"{request.input.name}, frame {text}, {plan.opened.model.name} at iteration {metadata.step}, to {request.to}"
    )
    _write_sheet(arguments.out, draw_sheet(swapper, frame, face, request.settings.of(int(text)), title))
    return EXIT_DONE
