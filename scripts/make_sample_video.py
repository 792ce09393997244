"""Make the bundled sample video: four scenes and, in the third, one inserted card. Seeded; H.264 through PyAV.

python scripts/make_sample_video.py assets/sample.mp4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SECONDS, FPS, WIDTH, HEIGHT = 60, 10, 640, 360
CARD_AT, CARD_SECONDS = 38.0, 2.0
CARD_TEXT = "FRESH BREAD\n50% OFF TODAY"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="mp4 file to write; an existing one is replaced")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_video(arguments.output, arguments.seed)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1024:.0f} KiB)")


def write_video(path: Path, seed: int) -> None:
    """Encode all frames to `path`."""
    rng = np.random.default_rng(seed)
    scenes = [night_sky(rng), sea(rng), balls(rng), city(rng)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "24", "preset": "slow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 5 * FPS
        for number in range(SECONDS * FPS):
            time = number / FPS
            scene = scenes[int(time * len(scenes) / SECONDS)]
            picture = card() if CARD_AT <= time < CARD_AT + CARD_SECONDS else scene(time)
            for packet in stream.encode(av.VideoFrame.from_image(picture)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def card() -> Image.Image:
    """The needle: an advertisement that has nothing to do with the scenes."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (250, 224, 90))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((24, 24, WIDTH - 24, HEIGHT - 24), outline=(160, 40, 30), width=8)
    font = ImageFont.load_default(size=56)
    draw.multiline_text((WIDTH / 2, HEIGHT / 2), CARD_TEXT, (160, 40, 30), font, anchor="mm", align="center")
    return picture


def night_sky(rng: np.random.Generator):
    """Stars that twinkle and a moon that rises."""
    stars = rng.uniform((0, 0), (WIDTH, HEIGHT), (80, 2))
    phases = rng.uniform(0, 6.28, 80)

    def draw_at(time: float) -> Image.Image:
        picture = Image.new("RGB", (WIDTH, HEIGHT), (12, 14, 40))
        draw = ImageDraw.Draw(picture)
        for (x, y), phase in zip(stars, phases):
            light = int(150 + 100 * np.sin(2 * time + phase))
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(light, light, light))
        x, y = 100 + 20 * time, 280 - 14 * time
        draw.ellipse((x - 36, y - 36, x + 36, y + 36), fill=(240, 236, 200))
        return picture

    return draw_at


def sea(rng: np.random.Generator):
    """Rows of waves under a boat."""
    shifts = rng.uniform(0, 6.28, 6)

    def draw_at(time: float) -> Image.Image:
        picture = Image.new("RGB", (WIDTH, HEIGHT), (150, 205, 240))
        draw = ImageDraw.Draw(picture)
        x, y = 60 + 24 * (time - 15), 150 + 6 * np.sin(1.7 * time)
        draw.polygon(((x, y), (x + 120, y), (x + 95, y + 34), (x + 25, y + 34)), fill=(150, 70, 40))
        draw.polygon(((x + 55, y - 5), (x + 55, y - 95), (x + 110, y - 5)), fill=(245, 245, 235))
        for row, shift in enumerate(shifts):
            base = 185 + 30 * row
            crest = [(c, base + 8 * np.sin(c / 40 + shift + time * (1 + row / 4))) for c in range(0, WIDTH + 20, 20)]
            draw.polygon([*crest, (WIDTH, HEIGHT), (0, HEIGHT)], fill=(20, 90 + 14 * row, 150 + 10 * row))
        return picture

    return draw_at


def balls(rng: np.random.Generator):
    """Coloured balls that bounce in a room."""
    starts = rng.uniform(60, 300, (5, 2))
    speeds = rng.uniform(40, 120, (5, 2))
    colours = [(220, 60, 50), (60, 170, 80), (60, 100, 220), (235, 160, 40), (160, 70, 190)]

    def draw_at(time: float) -> Image.Image:
        picture = Image.new("RGB", (WIDTH, HEIGHT), (232, 226, 214))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, 300, WIDTH, HEIGHT), fill=(170, 140, 110))
        for (x, y), (dx, dy), colour in zip(starts, speeds, colours):
            left, top = (_bounce(a + d * time, room) for a, d, room in ((x, dx, WIDTH - 60), (y, dy, HEIGHT - 60)))
            draw.ellipse((left, top, left + 60, top + 60), fill=colour)
        return picture

    return draw_at


def city(rng: np.random.Generator):
    """Houses that scroll by, with a train in front."""
    heights = rng.integers(80, 240, 24)
    shades = rng.integers(70, 170, 24)

    def draw_at(time: float) -> Image.Image:
        picture = Image.new("RGB", (WIDTH, HEIGHT), (250, 190, 140))
        draw = ImageDraw.Draw(picture)
        for house, (height, shade) in enumerate(zip(heights, shades)):
            x = house * 70 - 30 * (time - 45)
            draw.rectangle((x, 300 - height, x + 60, 300), fill=(int(shade), int(shade), int(shade) + 40))
        front = -200 + 60 * (time - 45)
        for wagon in range(4):
            draw.rectangle((front - 110 * wagon, 290, front + 100 - 110 * wagon, 335), fill=(40, 90, 60))
        draw.rectangle((0, 335, WIDTH, HEIGHT), fill=(60, 60, 60))
        return picture

    return draw_at


def _bounce(position: float, room: float) -> float:
    position %= 2 * room
    return position if position < room else 2 * room - position


if __name__ == "__main__":
    main()
