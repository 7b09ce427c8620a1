"""A picture of a board: `python docs/picture.py BOARD/leaderboard.html docs/board.png [HEIGHT]`.

It shows the top of the page as Chromium renders it, 1280 pixels wide, in the light theme. 256
colors keep the file below 250 kB. The colors of the page's style are among them, so that no two
candidates get the same color.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT, N_COLORS, MAX_BYTES = 1280, 1120, 256, 250_000
STYLE = Path(__file__).parents[1] / "protocol/board/board.css"
OFFLINE_FLAGS = [  # Chromium must not use the network
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
]


def picture(page: Path, out: Path, height: int = HEIGHT) -> None:
    """Writes a screenshot of `page` to `out`."""
    browsers = [path for name in ("chromium", "google-chrome") if (path := shutil.which(name))]
    if not browsers:
        sys.exit("Chromium is not on the path; install it.")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            *(browsers[0], "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *OFFLINE_FLAGS,
            *("--blink-settings=preferredColorScheme=1", f"--window-size={WIDTH},{height}"),
            *(f"--user-data-dir={folder}/profile", f"--screenshot={shot}", page.resolve().as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            reduce_colors(image.convert("RGB"), style_colors(STYLE)).save(out, optimize=True)
    if out.stat().st_size > MAX_BYTES:
        size = f"{out} has {out.stat().st_size:,} bytes"
        sys.exit(f"{size}, must be at most {MAX_BYTES:,}; lower HEIGHT")


def style_colors(style: Path) -> list[tuple[int, int, int]]:
    """Returns the colors of the light theme, which stands first in the style."""
    light = style.read_text("utf-8").partition("@media")[0]
    codes = dict.fromkeys(re.findall(r"#([0-9a-f]{6})\b", light))
    return [(int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in codes]


def reduce_colors(image: Image.Image, fixed: list[tuple[int, int, int]]) -> Image.Image:
    """Returns an image of 256 colors, of which `fixed` are some."""
    others = image.quantize(N_COLORS - len(fixed), dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for color in fixed for channel in color] + others)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
