"""A preview window by Tk: scale, fit, interpolation, save, and faceswap's keys.

python -m swapfast.preview.window_tk FILE        show a picture
"""

from __future__ import annotations

import contextlib
import sys
import time
import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from tkinter import ttk
from typing import Any

import cv2
import numpy as np

from swapfast.errors import SwapfastError
from swapfast.files import write_file
from swapfast.preview.buffer import PreviewBase, PreviewBuffer, TriggerName, Triggers, check_display, no_display
from swapfast.preview.history import read_sheet
from swapfast.printing import complain, printable

FIT = "Fit"
SCALES = (25, 50, 75, 100, 150, 200, 300, 400, 800)  # percent
METHODS = {
    "nearest": cv2.INTER_NEAREST_EXACT,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}
AUTO = "auto"  # area where the picture shrinks, cubic where it grows
KEYS = "M mask   R refresh   S save   F fit or actual size   + - zoom   Enter save and end"
VIEWER_KEYS = "F fit or actual size   + - zoom   Enter or Esc close"
_POLL_MS = 100
_SHOWN_MS = 5000  # of a line
_SHARE = 0.85  # of the screen that a new window takes at most
_PAPER = "#303030"
_SAID = {
    "toggle_mask": "mask: from the next picture on",
    "refresh": "a new picture follows",
    "save": "the run saves after the step in progress",
    "quit": "the run saves and ends",
}


def open_root(title: str) -> tk.Tk:
    """Open a window. Raises SwapfastError where there is no display, or one that refuses."""
    check_display()
    try:
        root = tk.Tk(className="swapfast")
    except tk.TclError as error:
        raise no_display(printable(str(error))) from error
    root.title(title)
    return root


def main_loop(root: tk.Tk) -> None:
    """Show a window until it is closed. Raises what is raised meanwhile, such as by Ctrl-C, and closes it then."""
    errors: list[BaseException] = []

    def leave(_kind: type[BaseException], error: BaseException, _trace: object) -> None:
        errors.append(error)
        root.quit()

    root.report_callback_exception = leave  # Tk prints it otherwise, and goes on
    root.mainloop()
    if errors:
        root.destroy()
        raise errors[0]


class View:
    """A canvas that shows a part of a picture at a scale. Only what is visible is resized.

    on_zoom: called with the scale in words when the wheel or ``zoom`` changes it.
    """

    def __init__(self, parent: tk.Misc, on_zoom: Callable[[str], None]) -> None:
        self.frame = ttk.Frame(parent)
        self.canvas = tk.Canvas(self.frame, background=_PAPER, highlightthickness=0, width=320, height=200)
        self._bars = (
            ttk.Scrollbar(self.frame, orient="horizontal", command=self._scroll_x),
            ttk.Scrollbar(self.frame, orient="vertical", command=self._scroll_y),
        )
        self.canvas.grid(row=0, column=0, sticky="nsew")
        self._bars[0].grid(row=1, column=0, sticky="ew")
        self._bars[1].grid(row=0, column=1, sticky="ns")
        self.frame.rowconfigure(0, weight=1)
        self.frame.columnconfigure(0, weight=1)
        self.image: np.ndarray | None = None
        self.scale_name, self.method = FIT, AUTO
        self._on_zoom = on_zoom
        self._left = self._top = 0.0  # of the visible part, share of the picture
        self._dragged_from: tuple[int, int, float, float] | None = None
        self._photo: tk.PhotoImage | None = None
        self.canvas.bind("<Configure>", lambda _: self.draw())
        self.canvas.bind("<ButtonPress-1>", self._begin_drag)
        self.canvas.bind("<B1-Motion>", self._drag)
        self.canvas.bind("<Button-4>", lambda event: self._wheel(event, 1))
        self.canvas.bind("<Button-5>", lambda event: self._wheel(event, -1))
        self.canvas.bind("<MouseWheel>", lambda event: self._wheel(event, 1 if event.delta > 0 else -1))

    @property
    def scale(self) -> float:
        """Return screen px per px of the picture."""
        if self.image is None:
            return 1.0
        if self.scale_name != FIT:
            return int(self.scale_name.removesuffix(" %")) / 100
        height, width = self.image.shape[:2]
        return max(1e-3, min(self.canvas.winfo_width() / width, self.canvas.winfo_height() / height))

    def show(self, image: np.ndarray) -> None:
        """Show another picture, (H, W, 3) uint8 BGR, at the same place and scale."""
        self.image = image
        self.draw()

    def set_scale(self, name: str) -> None:
        """Show the picture at ``name``, FIT or such as '150 %', around the same middle."""
        visible = self._visible_shares()
        middle = [start + share / 2 for start, share in zip((self._left, self._top), visible)]
        self.scale_name = name
        self._left, self._top = (m - share / 2 for m, share in zip(middle, self._visible_shares()))
        self.draw()

    def zoom(self, steps: int) -> None:
        """Take the next larger (1) or smaller (-1) scale."""
        now = self.scale * 100
        larger, smaller = [s for s in SCALES if s > now + 0.5], [s for s in SCALES if s < now - 0.5]
        scales = (larger[:1] if steps > 0 else smaller[-1:]) or [SCALES[-1] if steps > 0 else SCALES[0]]
        self.set_scale(f"{scales[0]} %")
        self._on_zoom(self.scale_name)

    def pan(self, x: float, y: float) -> None:
        """Move the visible part by shares of itself."""
        across, down = self._visible_shares()
        self._left, self._top = self._left + x * across, self._top + y * down
        self.draw()

    def _visible_shares(self) -> tuple[float, float]:
        """Return which share of the picture's width and height fits into the canvas."""
        if self.image is None:
            return 1.0, 1.0
        height, width = self.image.shape[:2]
        scale = self.scale
        return (
            min(1.0, self.canvas.winfo_width() / (width * scale)),
            min(1.0, self.canvas.winfo_height() / (height * scale)),
        )

    def draw(self) -> None:
        """Draw the visible part anew."""
        self.canvas.delete("all")
        if self.image is None or self.canvas.winfo_width() < 2:
            return
        height, width = self.image.shape[:2]
        self._show_bars(self.scale_name != FIT)
        across, down = self._visible_shares()
        self._left, self._top = min(max(self._left, 0.0), 1 - across), min(max(self._top, 0.0), 1 - down)
        self._bars[0].set(self._left, self._left + across)
        self._bars[1].set(self._top, self._top + down)
        x, right = _pixels(self._left, across, width)
        y, bottom = _pixels(self._top, down, height)
        part, scale = self.image[y:bottom, x:right], self.scale
        size = (max(1, round((right - x) * scale)), max(1, round((bottom - y) * scale)))
        self._photo = photo_of(resized(part, size, self.method))
        # A picture smaller than the window lies in its middle.
        room = self.canvas.winfo_width(), self.canvas.winfo_height()
        offset_x = (room[0] - width * scale) / 2 if across >= 1 else (x - self._left * width) * scale
        offset_y = (room[1] - height * scale) / 2 if down >= 1 else (y - self._top * height) * scale
        self.canvas.create_image(round(offset_x), round(offset_y), image=self._photo, anchor="nw")

    def _show_bars(self, shown: bool) -> None:
        if shown != bool(self._bars[0].winfo_manager()):
            for bar in self._bars:
                bar.grid() if shown else bar.grid_remove()

    def _scroll_x(self, action: str, amount: str, *_: str) -> None:
        if action == "moveto":
            self._left = float(amount)
            self.draw()
        else:
            self.pan(int(amount) * 0.2, 0)

    def _scroll_y(self, action: str, amount: str, *_: str) -> None:
        if action == "moveto":
            self._top = float(amount)
            self.draw()
        else:
            self.pan(0, int(amount) * 0.2)

    def _begin_drag(self, event: Any) -> None:
        self._dragged_from = event.x, event.y, self._left, self._top

    def _drag(self, event: Any) -> None:
        if self._dragged_from is None or self.image is None:
            return
        x, y, left, top = self._dragged_from
        height, width = self.image.shape[:2]
        scale = self.scale
        self._left, self._top = left - (event.x - x) / (width * scale), top - (event.y - y) / (height * scale)
        self.draw()

    def _wheel(self, event: Any, direction: int) -> None:
        if event.state & 0x4:  # Control
            self.zoom(direction)
        elif event.state & 0x1:  # Shift
            self.pan(-0.2 * direction, 0)
        else:
            self.pan(0, -0.2 * direction)


def _pixels(start: float, share: float, length: int) -> tuple[int, int]:
    """Return the first px of a visible part and the one behind its last."""
    first = min(int(start * length), length - 1)
    return first, max(first + 1, min(length, int(np.ceil((start + share) * length))))


def resized(picture: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """Return a picture at ``size``, (width, height) px, by one of METHODS or AUTO."""
    if size == picture.shape[1::-1]:
        return picture
    shrinks = size[0] < picture.shape[1]
    code = METHODS.get(method, cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return cv2.resize(picture, size, interpolation=code)


def photo_of(picture: np.ndarray) -> tk.PhotoImage:
    """Return (H, W, 3) uint8 BGR as Tk's picture."""
    height, width = picture.shape[:2]
    rgb = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_BGR2RGB)
    return tk.PhotoImage(data=f"P6 {width} {height} 255\n".encode() + rgb.tobytes(), format="PPM")


class PreviewTk(PreviewBase):
    """A window, or a part of another one, that shows the pictures of the buffer.

    parent: the widget that it is to be in; None opens a window of its own, which has the keys M, R, S, F and Enter.
    taskbar: a frame of the caller's for the controls; None puts them below the picture.
    Raises SwapfastError where a window of its own cannot be opened.
    """

    def __init__(
        self,
        preview_buffer: PreviewBuffer,
        parent: tk.Misc | None = None,
        taskbar: ttk.Frame | None = None,
        triggers: Triggers | None = None,
    ) -> None:
        super().__init__(preview_buffer, triggers)
        self._root = open_root("swapfast preview") if parent is None else None
        owner: tk.Misc | None = self._root or parent
        assert owner is not None
        self._images: dict[str, np.ndarray] = {}
        self._keys = ""  # what is said while there is nothing else to say
        self._said = ""  # Tk's name of what takes a line away again
        self._next_tick = ""
        self._master_frame = ttk.Frame(owner)
        self._master_frame.bind("<Destroy>", self._forget)
        self.view = View(self._master_frame, self._zoomed)
        own_bar = taskbar is None
        self._taskbar: tk.Misc = ttk.Frame(self._master_frame, padding=4) if taskbar is None else taskbar
        self._controls = self._make_controls()
        if own_bar:
            self._taskbar.pack(side="bottom", fill="x")
        self.view.frame.pack(side="top", fill="both", expand=True)
        if self._root is not None:
            self.pack(fill="both", expand=True)
            self.bind_keys(self._root)
        self._tick()

    def _make_controls(self) -> list[tk.Widget]:
        """Make the controls of the taskbar, from left to right."""
        self._name = tk.StringVar(self._master_frame)
        self._scale = tk.StringVar(self._master_frame, FIT)
        self._method = tk.StringVar(self._master_frame, AUTO)
        self._status = tk.StringVar(self._master_frame)
        self._names = self._choice(self._name, [], 22, self._choose_name)
        scale = self._choice(self._scale, [FIT, *(f"{s} %" for s in SCALES)], 7, self._choose_scale)
        method = self._choice(self._method, [AUTO, *METHODS], 8, self._choose_method)
        keep = ttk.Button(self._taskbar, text="Save picture", takefocus=False, command=lambda: self._keep("."))
        status = ttk.Label(self._taskbar, textvariable=self._status)
        captions = [ttk.Label(self._taskbar, text=text) for text in ("Scale", "Interpolation")]
        controls = [captions[0], scale, captions[1], method, keep, status]
        for widget in controls:
            widget.pack(side="left", padx=(0, 6))
        return [self._names, *controls]

    def _choice(
        self, variable: tk.StringVar, values: list[str], width: int, answer: Callable[[], None]
    ) -> ttk.Combobox:
        box = ttk.Combobox(self._taskbar, textvariable=variable, values=values, width=width, state="readonly")
        box.configure(takefocus=False)

        def chosen(_: object) -> None:
            answer()
            box.selection_clear()
            self.view.canvas.focus_set()  # the keys belong to the window again

        box.bind("<<ComboboxSelected>>", chosen)
        return box

    # --- the API ----------------------------------------------------------------------------------------------

    @property
    def master_frame(self) -> ttk.Frame:
        """Return the frame that holds the preview."""
        return self._master_frame

    def pack(self, *args: Any, **kwargs: Any) -> None:
        """Pack the preview's frame, with the arguments of ``tkinter.Frame.pack``."""
        self._master_frame.pack(*args, **kwargs)

    def remove_option_controls(self) -> None:
        """Remove the controls from the taskbar."""
        for widget in self._controls:
            widget.destroy()
        self._controls = []

    def save(self, location: str) -> None:
        """Save every picture as PNG in the folder ``location``, under a new name each.

        Raises SwapfastError where that cannot be.
        """
        folder = Path(location)
        if not folder.is_dir():
            raise SwapfastError(f"{location}: no such folder; give one to save the preview in")
        for name, image in self._images.items():
            _, png = cv2.imencode(".png", image)
            write_file(_new_name(folder, name), png.tobytes())

    def run(self) -> None:
        """Show the window until it is closed, in the main thread. Of a part of another one that is its owner's."""
        if self._root is not None:
            self._root.update_idletasks()
            self._size_window()
            main_loop(self._root)

    # --- keys -------------------------------------------------------------------------------------------------

    def bind_keys(self, window: tk.Misc, line: str = "") -> None:
        """Give a window the keys. line: what is said of them."""
        for key, name in (("m", "toggle_mask"), ("r", "refresh"), ("s", "save")):
            for spelling in (key, key.upper()):
                window.bind(f"<KeyPress-{spelling}>", lambda _, name=name: self._press(name))  # type: ignore[misc]
        for spelling in ("f", "F"):
            window.bind(f"<KeyPress-{spelling}>", lambda _: self.toggle_fit())
        for spelling in ("plus", "equal", "KP_Add"):
            window.bind(f"<KeyPress-{spelling}>", lambda _: self.view.zoom(1))
        for spelling in ("minus", "KP_Subtract"):
            window.bind(f"<KeyPress-{spelling}>", lambda _: self.view.zoom(-1))
        for spelling in ("Return", "KP_Enter"):
            window.bind(f"<KeyPress-{spelling}>", lambda _: self._quit())
        window.bind("<KeyPress-Escape>", lambda _: self.close())
        self._keys = line or (KEYS if self._triggers else VIEWER_KEYS)
        self._status.set(self._keys)

    def say(self, text: str) -> None:
        """Show a line beside the controls, for a few seconds."""
        if self._said:
            self._master_frame.after_cancel(self._said)
        self._status.set(text)
        self._said = self._master_frame.after(_SHOWN_MS, lambda: self._status.set(self._keys))

    def toggle_fit(self) -> None:
        """Fit the picture into the window, or show it at its actual size."""
        self._scale.set("100 %" if self.view.scale_name == FIT else FIT)
        self._choose_scale()

    def _press(self, name: TriggerName) -> None:
        if self._set(name):
            self.say(_SAID[name])
        elif name == "save":
            self._keep(".")

    def _quit(self) -> None:
        self._set("quit")
        self.close()

    def close(self) -> None:
        """Close the window that the preview is in, and nothing else."""
        self._master_frame.winfo_toplevel().destroy()  # cancels what is to come, see ``_forget``

    def _forget(self, event: Any) -> None:
        """Cancel what is to come as the preview is taken away, by whomever."""
        if event.widget is self._master_frame:
            for pending in filter(None, (self._next_tick, self._said)):
                self._master_frame.after_cancel(pending)

    # --- what is shown ----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Take new pictures over, and look whether to close; again and again."""
        if self._should_close:
            self.close()
            return
        if self._buffer.is_updated:
            self._take()
        self._next_tick = self._master_frame.after(_POLL_MS, self._tick)

    def _take(self) -> None:
        is_first = not self._images
        self._images.update(self._buffer.get_images())
        names = list(self._images)
        if self._name.get() not in names:
            self._name.set(names[0])
        if self._controls:
            self._names.configure(values=names)
            if len(names) > 1 and not self._names.winfo_manager():
                self._names.pack(side="left", padx=(0, 6), before=self._controls[1])
        self.view.show(self._images[self._name.get()])
        if is_first and self._root is not None:
            self._size_window()

    def _size_window(self) -> None:
        """Make the window as large as the picture, or as most of the screen."""
        if self._root is None or not self._images:
            return
        height, width = self._images[self._name.get()].shape[:2]
        most = self._root.winfo_screenwidth() * _SHARE, self._root.winfo_screenheight() * _SHARE
        bar = self._taskbar.winfo_reqheight() + 16
        scale = min(1.0, most[0] / width, (most[1] - bar) / height)
        self._root.geometry(f"{max(640, round(width * scale) + 16)}x{max(200, round(height * scale)) + bar}")

    def _choose_name(self) -> None:
        self.view.show(self._images[self._name.get()])

    def _choose_scale(self) -> None:
        self.view.set_scale(self._scale.get())

    def _choose_method(self) -> None:
        self.view.method = self._method.get()
        self.view.draw()

    def _zoomed(self, name: str) -> None:
        self._scale.set(name)

    def _keep(self, location: str) -> None:
        try:
            self.save(location)
            self.say(f"saved in {Path(location).resolve()}")
        except SwapfastError as error:
            self.say(str(error))


def _new_name(folder: Path, name: str) -> Path:
    """Return a path in ``folder`` that does not exist, named after a picture and the time."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_")[:60] or "preview"
    stem = f"{plain}_{time.strftime('%Y%m%d_%H%M%S')}"
    paths = (folder / f"{stem}{'' if number == 1 else f'_{number}'}.png" for number in range(1, 10_000))
    return next(path for path in paths if not path.exists())


def main(arguments: list[str] | None = None) -> int:
    """Show the picture that is given; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if len(words) != 1 or words[0] in ("-h", "--help"):
            raise SwapfastError("give one picture: python -m swapfast.preview.window_tk FILE")
        buffer = PreviewBuffer()
        buffer.add_image(Path(words[0]).name, read_sheet(Path(words[0])))
        PreviewTk(buffer).run()
    except SwapfastError as error:
        complain(f"swapfast: {error}")
        return error.code
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
