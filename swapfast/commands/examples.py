"""Examples that the help of each command shows, to be copied."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "synthesize": (
        ("swapfast synthesize faces", "300 faces of each of two people, and 40 true swaps"),
        ("swapfast synthesize clip --film 4", "a video of four seconds with landmarks, and its true swap"),
    ),
    "inspect": (
        ("swapfast inspect faces/a", "what the folder holds, and every bad file"),
        ("swapfast inspect faces/a faces/b -o survey.png", "poses and sharpness of both, drawn"),
    ),
    "extract": (
        ("swapfast extract --get-models", "once: fetches two network files"),
        ("swapfast extract -i clip.mp4 -o faces/a", "the faces of a video, aligned"),
    ),
    "train": (
        ("swapfast train -A faces/a -B faces/b -m model", "begins, or goes on after a stop"),
        ("swapfast train -A faces/a -B faces/b -m model -i 100000 --validation 0.05", "measures on faces held out"),
        ("swapfast train -A faces/a -B faces/b -m model --print-config > run.toml", "all settings, to be edited"),
        ("swapfast train -C run.toml --max-time 3h30m", "a run in a file, stopped in time"),
    ),
    "prepare": (("swapfast prepare faces/a prepared/a --size 256", "a portable set; train -A and -B take it"),),
    "augment": (("swapfast augment faces/a -o sheet.png --percentile 99", "the extremes of what training sees"),),
    "cache": (
        ("swapfast cache model", "what the next start need not decode again"),
        ("swapfast cache model --clear", "frees the disk"),
    ),
    "log": (
        ("swapfast log model", "how training went"),
        ("swapfast log model -o losses.png", "the losses, drawn"),
    ),
    "watch": (
        ("swapfast watch model", "a page in the browser; the address is printed"),
        ("swapfast watch model model2 --port 8420", "two runs side by side"),
    ),
    "preview": (("swapfast preview model", "a window that shows the preview of a run, or of a finished model"),),
    "timelapse": (("swapfast timelapse model -o film.mp4", "a film of the previews that were kept"),),
    "restore": (
        ("swapfast restore model --list", "everything there is to go back to"),
        ("swapfast restore model --step 25000", "back to a snapshot"),
    ),
    "evaluate": (
        ("swapfast evaluate -m model --truth faces/truth", "against known true swaps"),
        ("swapfast evaluate -m model --test", "on the faces that train --test held out"),
    ),
    "swap": (
        ("swapfast swap -m model -i frames -p faces/a -o swapped --check", "says what would be swapped"),
        ("swapfast swap -m model -i clip.mp4 --landmarks landmarks.jsonl -o swapped.mp4", "a video"),
    ),
    "export": (("swapfast export -m model --to dfm", "for DeepFaceLive, facefusion and others"),),
    "import": (("swapfast import dfl/model -m model", "goes on with a model of DeepFaceLab"),),
    "codes": (("swapfast codes -m model", "for a model that was trained without"),),
    "activations": (("swapfast activations model face.png -o sheet.png", "each stage for one face"),),
    "models": (("swapfast models --json", "the list for a program"),),
    "doctor": (("swapfast doctor", "what this machine has"),),
    "completion": (
        ('eval "$(swapfast completion bash)"', "in ~/.bashrc"),
        ('swapfast completion zsh > "${fpath[1]}/_swapfast"', "before compinit"),
        ("swapfast completion fish > ~/.config/fish/completions/swapfast.fish", ""),
    ),
}


def examples_of(command: str) -> str:
    """Return the examples of a command as its help shows them, '' where it has none."""
    lines = EXAMPLES.get(command, ())
    width = max((len(line) for line, purpose in lines if len(line) <= 60), default=0)
    return (
        "\n".join(["examples:", *(f"  {line:<{width}}  {purpose}".rstrip() for line, purpose in lines)])
        if lines
        else ""
    )
