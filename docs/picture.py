"""A picture of a board: `python docs/picture.py BOARD/leaderboard.html docs/board.png [HEIGHT]`.

It shows the top of the page as Chromium renders it, 1280 pixels wide, in the light theme. 64 colors
are enough for text and lines and keep the file below 200 kB.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT, N_COLORS, MAX_BYTES = 1280, 1120, 64, 200_000
OFFLINE_FLAGS = [  # Chromium must not use the network
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--no-first-run"),
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
            image.convert("RGB").quantize(N_COLORS, dither=Image.Dither.NONE).save(
                out, optimize=True
            )
    if out.stat().st_size > MAX_BYTES:
        size = f"{out} has {out.stat().st_size:,} bytes"
        sys.exit(f"{size}, must be at most {MAX_BYTES:,}; lower HEIGHT")


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
