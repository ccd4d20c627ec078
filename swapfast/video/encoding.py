"""How frames are encoded: --codec, --crf and --preset to FFmpeg's encoder, pixel format and options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from swapfast.errors import SwapfastError, shortened, unknown_name
from swapfast.video.pixels import Conversion, PlaneFormat, frame_of, working_format
from swapfast.video.probe import ColourTags, HdrMetadata, VideoInfo

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
CODECS = {
    "auto": "x264; for more than 8 bits x265; for alpha prores in .mov and lossless in .mkv",
    "x264": "H.264: every player has it",
    "x265": "H.265: a third smaller, slower",
    "nvenc": "H.264 by the graphics card",
    "nvenc-hevc": "H.265 by the graphics card",
    "lossless": "FFV1 in .mkv, otherwise H.264 without loss: pixels outside the mask stay equal to the bit",
    "prores": "ProRes 4444 or 422 HQ for editing, in .mov or .mkv; keeps alpha",
}
_ENCODERS = {
    "x264": "libx264",
    "x265": "libx265",
    "nvenc": "h264_nvenc",
    "nvenc-hevc": "hevc_nvenc",
    "prores": "prores_ks",
}
_KEEPS_ALPHA = ("ffv1", "prores_ks")  # x265 writes a layer of its own, which few players know
_NEEDS_EVEN = ("libx264", "libx265", "h264_nvenc", "hevc_nvenc", "prores_ks")
CRF = (0, 51)
DEFAULT_CRF = 17  # of x264: nobody sees a difference
DEFAULT_PRESET = "medium"
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_GLOBAL_HEADER = 1 << 22
_BT709, _LIMITED = 1, 1  # what RGB becomes where an encoder takes none


@dataclass(frozen=True)
class EncodeSettings:
    """What a user asks of a video's encoder.

    codec   one of ``CODECS``
    crf     quality of x264, x265 and nvenc: 0 (best) to 51; 17 shows no loss
    preset  x264's and x265's: slower ones make smaller files
    """

    codec: str = "auto"
    crf: int = DEFAULT_CRF
    preset: str = DEFAULT_PRESET

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise unknown_name("--codec", self.codec, CODECS)
        if not CRF[0] <= self.crf <= CRF[1]:
            raise SwapfastError(
                f"--crf {shortened(self.crf)}: give {CRF[0]} (best) to {CRF[1]}; {DEFAULT_CRF} is usual"
            )
        if self.preset not in PRESETS:
            raise unknown_name("--encoder-preset", self.preset, PRESETS)


@dataclass(frozen=True)
class Encoding:
    """An encoder for the frames of one video.

    encoder  FFmpeg's name
    pix_fmt  what it takes
    tags     colour tags of what it writes
    info     the video whose size, rate, shape of pixels and time base it has
    options  of the encoder
    """

    encoder: str
    pix_fmt: str
    tags: ColourTags
    info: VideoInfo
    options: dict[str, str] = field(default_factory=dict)

    def set_up(self, context: Any) -> None:
        """Set a codec context that is not yet open."""
        info = self.info
        context.width, context.height, context.pix_fmt = info.width, info.height, self.pix_fmt
        context.time_base = info.time_base
        context.framerate = info.rate
        context.options = dict(self.options)
        context.flags |= _GLOBAL_HEADER
        context.thread_type = "FRAME"  # slices, PyAV's default, cost quality and do not always give the same bytes
        if info.aspect:
            context.sample_aspect_ratio = info.aspect
        self._tag(context)

    def _tag(self, target: Any) -> None:
        target.colorspace, target.color_range = self.tags.matrix, self.tags.range
        target.color_primaries, target.color_trc = self.tags.primaries, self.tags.transfer

    def frame(self, planes: list[np.ndarray], format: PlaneFormat) -> Any:
        """Return planes of the working format as a frame of PyAV's that the encoder takes."""
        info = self.info
        target = working_format(self.pix_fmt)
        if format.is_rgb and not target.is_rgb:
            planes, format = self._from_rgb(planes, format, target), target
        frame = frame_of(planes, format.name.replace("yuvj", "yuv"), info.width, info.height)
        self._tag(frame)
        if frame.format.name != self.pix_fmt:
            tags = self.tags
            frame = frame.reformat(format=self.pix_fmt, src_color_range=tags.range, dst_color_range=tags.range)
            self._tag(frame)
        return frame

    def _from_rgb(self, planes: list[np.ndarray], format: PlaneFormat, target: PlaneFormat) -> list[np.ndarray]:
        pixels = Conversion(format, ColourTags(), self.info.height).to_pixels(planes)
        if pixels.dtype != target.dtype:
            pixels = np.rint(pixels * (target.peak / format.peak)).astype(target.dtype)
        return Conversion(target, self.tags, self.info.height).to_planes(pixels)

    def open(self) -> Any:
        """Return an opened codec context. Raises SwapfastError where the encoder cannot run here."""
        from av import CodecContext
        from av.error import FFmpegError

        context = CodecContext.create(self.encoder, "w")
        self.set_up(context)
        try:
            context.open()
        except (FFmpegError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            if self.encoder.endswith("nvenc"):
                raise SwapfastError(
                    f"--codec: {self.encoder} cannot run here ({problem}): it needs a graphics card of NVIDIA's with "
                    "its driver; choose --codec x264"
                ) from error
            size = f"{self.info.width} x {self.info.height} px"
            raise SwapfastError(
                f"--codec: {self.encoder} refuses {size} as {self.pix_fmt} ({problem}); choose another codec"
            ) from error
        return context


def _has_avx512() -> bool:
    """Return whether the processor has AVX-512.

    With it x264's mbtree decides by memory that nobody has written, where a frame has few macroblocks: of 24 runs on
    96 x 96 px 8 differed. With AVX2 none did.
    """
    from llvmlite import binding  # Numba's

    return bool(binding.get_host_cpu_features().get("avx512f"))


def check_container(out: Path) -> str:
    """Return FFmpeg's name of the container that a path asks for. Raises SwapfastError for a suffix that has none."""
    container = CONTAINERS.get(out.suffix.lower())
    if container is None:
        raise SwapfastError(f"-o {out}: give a video a name that ends in {', '.join(CONTAINERS)}")
    return container


def choose_encoding(info: VideoInfo, out: Path, settings: EncodeSettings) -> Encoding:
    """Return the encoder for frames of ``info`` in the container of ``out``. Raises SwapfastError where none fits."""
    format = working_format(info.pix_fmt)
    container = check_container(out)
    codec = settings.codec if settings.codec != "auto" else _automatic(format, container)
    if codec == "lossless":
        encoder = "ffv1" if container == "matroska" else "libx264"
    else:
        encoder = _ENCODERS[codec]
    if encoder == "prores_ks" and container == "mp4":
        raise SwapfastError(f"--codec prores: .mp4 cannot hold it; give -o {out.with_suffix('.mov').name}")
    pix_fmt = _pix_fmt(format, encoder, info, is_exact=codec == "lossless")
    if pix_fmt is None:
        feature = "an alpha channel" if format.has_alpha else f"pixels of the kind {info.pix_fmt}"
        way_out = f"-o {out.with_suffix('.mkv').name} --codec lossless"
        if format.has_alpha:
            way_out += f", or -o {out.with_suffix('.mov').name} --codec prores"
        raise SwapfastError(f"--codec {codec}: {info.path} has {feature}, which {encoder} cannot hold; give {way_out}")
    tags = info.tags
    if format.is_rgb and not working_format(pix_fmt).is_rgb:
        tags = replace(tags, matrix=_BT709, range=_LIMITED)
    return Encoding(encoder, pix_fmt, tags, info, _options(encoder, codec, pix_fmt, settings, info.hdr))


def _automatic(format: PlaneFormat, container: str) -> str:
    if format.has_alpha:
        return {"mov": "prores", "matroska": "lossless"}.get(container, "x264")
    return "x264" if format.bits == 8 else "x265"


def _pix_fmt(format: PlaneFormat, encoder: str, info: VideoInfo, is_exact: bool) -> str | None:
    """Return what the encoder takes that is nearest to the working format, or None.

    Neither alpha nor depth is dropped while something takes it; an odd number of columns or rows is not scaled but
    stored without halved chroma, where the encoder wants even ones.
    """
    from av import Codec

    format_names = {f.name for f in Codec(encoder, "w").video_formats or ()}
    if format.has_alpha and encoder not in _KEEPS_ALPHA:
        return None
    plain = format.name.replace("yuvj", "yuv")
    is_odd = (format.halves_x and info.width % 2) or (format.halves_y and info.height % 2)
    is_odd = bool(is_odd) and encoder in _NEEDS_EVEN
    if plain in format_names and not is_odd:
        return plain
    if is_exact and encoder == "ffv1" and format.is_rgb and format.bits == 8:
        return "bgra" if format.has_alpha else "bgr0"
    if is_exact:
        return None
    alpha = "a" if format.has_alpha else ""
    chroma = "444" if is_odd or not format.halves_x else "420" if format.halves_y else "422"
    depths = [bits for bits in (8, 10, 12, 16) if bits >= format.bits] + [12, 10, 8]
    for subsampling in dict.fromkeys((chroma, "422", "444")):
        if is_odd and subsampling != "444":
            continue
        for bits in depths:
            name = f"yuv{alpha}{subsampling}p{'' if bits == 8 else f'{bits}le'}"
            if name in format_names and _keeps(chroma, subsampling):
                return name
        if chroma == "420" and format.bits > 8 and "p010le" in format_names:  # a card's
            return "p010le"
    return None


def _keeps(chroma: str, subsampling: str) -> bool:
    return ("420", "422", "444").index(subsampling) >= ("420", "422", "444").index(chroma)


def _options(encoder: str, codec: str, pix_fmt: str, settings: EncodeSettings, hdr: HdrMetadata) -> dict[str, str]:
    if encoder == "ffv1":
        return {"level": "3", "slicecrc": "1", "coder": "1", "g": "1"}
    if encoder == "prores_ks":
        return {"profile": "4444" if "444" in pix_fmt else "hq", "vendor": "apl0"}
    if encoder.endswith("nvenc"):
        return {"rc": "vbr", "cq": str(settings.crf), "b:v": "0", "preset": "p5"}
    options = {"preset": settings.preset}
    is_x264 = encoder == "libx264"
    params = ["asm=avx2"] * _has_avx512() if is_x264 else ["log-level=error"]
    if params := params + _hdr_params(hdr, is_x264):
        options["x264-params" if is_x264 else "x265-params"] = ":".join(params)
    if codec == "lossless":
        return {**options, "qp": "0"}
    return {**options, "crf": str(settings.crf)}


def _hdr_params(hdr: HdrMetadata, is_x264: bool) -> list[str]:
    """Return what x264 or x265 is told of HDR10."""
    params = []
    if hdr.display is not None:
        red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y, most, least = hdr.display
        points = f"G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})WP({white_x},{white_y})"
        params.append(f"{'mastering-display' if is_x264 else 'master-display'}={points}L({most},{least})")
    if hdr.light is not None:
        params.append(f"{'cll' if is_x264 else 'max-cll'}={hdr.light[0]},{hdr.light[1]}")
    return params
