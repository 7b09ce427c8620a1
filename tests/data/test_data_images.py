"""Tests of records of images and texts: decoding, bad input, drawn digits, stores and rows."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_stores import BOS, EOS

from data.images import decode, digits
from data.images.decode import ImageError, load_image
from data.images.rows import ImagePrefix, ImageRows
from data.images.settings import ImagesConfig, ImageText
from data.loader import Batches
from data.open_stores import open_data
from data.settings import DataConfig
from data.store import TokenStore
from data.store_writer import TokenStoreWriter
from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from objectives import CausalLM

Image = pytest.importorskip("PIL.Image")
GREY, COLOUR = ImagesConfig(size=16), ImagesConfig(size=16, channels=3)
TEXTS = ("ab", "cdefgh", "i")


def picture(n: int = 0, size: int = 16) -> np.ndarray:
    """Returns random 8-bit pixels [size size 3]."""
    return np.random.default_rng(n).integers(0, 256, (size, size, 3)).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """Returns the beginning of a PNG file of 8-bit grey pixels, by its specification."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr
    return chunks + struct.pack(">I", zlib.crc32(ihdr)) + struct.pack(">I", 9) + b"IDAT"


def test_files_and_arrays_of_the_same_pixels_are_the_same_image(tmp_path):
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    np.savez_compressed(tmp_path / "a.npz", np.stack([picture(1), pixels]))
    np.save(tmp_path / "fractions.npy", pixels / 255)
    for name, index in (("a.png", None), ("a.npy", None), ("a.npz", 1), ("fractions.npy", None)):
        np.testing.assert_array_equal(load_image(tmp_path / name, index, COLOUR), pixels)
    grey = load_image(tmp_path / "a.png", None, GREY)
    luma = pixels @ [0.299, 0.587, 0.114]  # ITU-R BT.601, which Pillow documents for "L".
    np.testing.assert_allclose(grey[..., 0], luma, atol=1)


def test_a_camera_that_was_turned_gives_an_upright_image(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255  # A white square at the top left of the stored pixels.
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: the viewer turns by 90 degrees clockwise.
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    upright = load_image(tmp_path / "a.jpg", None, GREY)[..., 0]
    assert upright[:6, 10:].min() > 200 and upright[:6, :6].max() < 50


@pytest.mark.parametrize(
    ("fit", "expected"), [("crop", [255, 255]), ("pad", [0, 255]), ("stretch", [255, 255])]
)
def test_images_are_brought_to_one_size(tmp_path, fit, expected):
    np.save(tmp_path / "a.npy", np.full((16, 64), 255, np.uint8))
    image = load_image(tmp_path / "a.npy", None, dataclasses.replace(GREY, fit=fit))
    assert image.shape == (16, 16, 1) and [image[0, 0, 0], image[8, 8, 0]] == expected


def bad_images(folder: Path) -> dict[str, str]:
    """Writes images that cannot be used, and returns what the reason of each must say."""
    pixels, rng = picture(), np.random.default_rng(0)
    Image.fromarray(pixels).save(folder / "whole.png")
    Image.fromarray(pixels).save(folder / "whole.jpg")
    for name in ("whole.png", "whole.jpg"):
        content = (folder / name).read_bytes()
        (folder / name.replace("whole", "half")).write_bytes(content[: len(content) // 2])
    Image.fromarray(rng.integers(0, 1 << 16, (16, 16)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(folder / "clear.png")
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (folder / "large.png").write_bytes(png_header(9_000, 9_000))
    (folder / "text.png").write_text("no image")
    np.save(folder / "deep.npy", pixels.astype(np.uint16))
    np.save(folder / "shape.npy", np.zeros((2, 16, 16, 3), np.uint8))
    np.save(folder / "range.npy", pixels.astype(float))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    return {
        "half.png": "truncated",
        "half.jpg": "truncated",
        "deep.png": "16 bits",
        "clear.png": "transparent.*data.images.background",
        "bomb.png": "pixels",
        "large.png": "9000 x 9000.*pixels",
        "text.png": "neither a PNG nor a JPEG",
        "deep.npy": "uint16, must be uint8",
        "shape.npy": r"\(2, 16, 16, 3\).*index",
        "range.npy": "between 0 and 1",
        "objects.npy": "cannot be decoded",
        "absent.png": "No such file",
    }


def test_an_image_that_cannot_be_used_is_refused_with_its_reason(tmp_path):
    for name, reason in bad_images(tmp_path).items():
        with pytest.raises(ImageError, match=f"(?i){reason}") as error:
            load_image(tmp_path / name, None, COLOUR)
        assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match="2 images, none with index 2"):
        load_image(tmp_path / "shape.npy", 2, COLOUR)
    white = dataclasses.replace(COLOUR, background="white")
    assert load_image(tmp_path / "clear.png", None, white).mean() > picture().mean()


def write_records(folder: Path, records: list[dict]) -> DataConfig:
    """Writes records as JSON lines, and returns the settings that read them."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return DataConfig(source="images", path=str(path), images=COLOUR, cache=str(folder / "cache"))


def test_records_name_file_line_and_reason_and_bad_ones_can_be_skipped(tmp_path):
    reasons = bad_images(tmp_path)
    good = []
    for i in range(40):
        np.save(tmp_path / f"{i}.npy", picture(i))
        good += [{"image": f"{i}.npy", "text": f"picture {i} {j}"} for j in range(2)]
    for bad, reason in (
        ({"image": "half.png", "text": "x"}, "'half.png'.*truncated"),
        ({"image": "0.npy", "text": " "}, "'0.npy' without a text under 'text'"),
        ({"picture": "0.npy", "text": "x"}, "no image under 'image'.*data.images.field"),
        ({"image": "0.npy", "text": "x", "index": "1"}, "'1' under 'index'"),
    ):
        with pytest.raises(DataError, match=f"pairs.jsonl.*byte 0.*{reason}"):
            open_data(write_records(tmp_path, [bad, *good]))
    bad = [{"image": name, "text": "x"} for name in reasons]
    cfg = dataclasses.replace(write_records(tmp_path, bad + good), on_error="skip", valid_share=0.2)
    data = open_data(dataclasses.replace(cfg, test_share=0.2))
    stores = {split: getattr(data, split) for split in ("train", "valid", "test")}
    assert data.describe()["train"]["skipped"] == len(bad)
    seen: dict[str, set[str]] = {}
    for split, store in stores.items():
        for i in range(store.n_documents):
            number = int(data.tokenizer.decode(store.document(i)).split()[1])
            np.testing.assert_array_equal(store.image(i), picture(number))
            seen.setdefault(split, set()).add(number)
    # Both texts of a picture are in its split.
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == 40
    before = data.fingerprint
    np.save(tmp_path / "1.npy", picture(99))
    assert open_data(dataclasses.replace(cfg, test_share=0.2)).fingerprint != before


def made_store(folder: Path) -> TokenStore:
    """Returns a store of three texts with an image each; a text without tokens is dropped."""
    writer = TokenStoreWriter(folder, ByteTokenizer(), image_shape=COLOUR.shape)
    ids = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in ("", *TEXTS)]
    writer.add_images(ids, [len(i) for i in ids], [picture(n) for n in (9, 0, 1, 2)])
    writer.finish({})
    return TokenStore(folder)


def test_a_row_is_an_image_and_its_text_and_every_token_is_scored_once(tmp_path):
    store, prefix = made_store(tmp_path / "s"), ImagePrefix(3, -1)
    rows = ImageRows(store, 7, 1, prefix)
    batches = Batches(rows, 2, CausalLM().make_row, 0, binarize_weights=True)
    scored = dict.fromkeys(range(3), "")
    for step in range(len(batches)):
        batch = batches[step]
        for i in range(2):
            slices = rows.row(2 * step + i)
            if not slices:  # The last batch is padded.
                assert not batch["images"][i].any() and not batch["weights"][i].any()
                continue
            document = slices[0].document
            np.testing.assert_array_equal(batch["images"][i], picture(document))
            assert batch["tokens"][i, :3].tolist() == [-1] * 3
            assert not batch["weights"][i, :3].any()
            targets = batch["targets"][i][batch["weights"][i] > 0]
            scored[document] += "".join("." if t == EOS else chr(t) for t in targets)
    assert list(scored.values()) == [f"{text}." for text in TEXTS]
    pairs = ImageRows(store, 5, 0, ImagePrefix())
    texts = [pairs.row(i)[0].tokens.tolist() for i in range(3)]
    assert texts[1] == [BOS, *b"cde", EOS] and texts[2] == [BOS, *b"i", EOS]
    assert pairs.row(3) == [] and pairs.row(0)[0].weights is None
    shuffled = ImageRows(store, 5, 0, ImagePrefix(), seed=3)
    for epoch in range(2):
        assert {shuffled.row(3 * epoch + i)[0].document for i in range(3)} == {0, 1, 2}
    digests = [
        Batches(ImageRows(s, 5, 0, ImagePrefix(), 0), 3, CausalLM().make_row, 0).digest(0)
        for s in (store, with_other_image(tmp_path / "o"))
    ]
    assert digests[0] != digests[1]
    with pytest.raises(ConfigError, match="seq_len 4.*3 patches.*use 5"):
        ImageRows(store, 4, 1, prefix)


def with_other_image(folder: Path) -> TokenStore:
    """Returns the same texts with other images."""
    writer = TokenStoreWriter(folder, ByteTokenizer(), image_shape=COLOUR.shape)
    ids = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in TEXTS]
    writer.add_images(ids, [len(i) for i in ids], [picture(n) for n in (5, 6, 7)])
    writer.finish({})
    return TokenStore(folder)


def test_a_store_without_images_and_a_damaged_one_are_refused(tmp_path):
    store = made_store(tmp_path / "s")
    path = store.folder / "images.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="images.bin is damaged"):
        TokenStore(store.folder)
    writer = TokenStoreWriter(tmp_path / "t", ByteTokenizer())
    writer.add([np.arange(3)], [3])
    writer.finish({})
    with pytest.raises(DataError, match="texts without images.*data.source"):
        ImageRows(TokenStore(tmp_path / "t"), 8, 1, ImagePrefix())


def test_digits_are_drawn_where_the_caption_says(monkeypatch):
    """Each source digit is a constant of its own, so that the canvas shows which one was drawn."""
    labels = np.arange(20) % 10
    pixels = np.ones((20, 8, 8)) * (np.arange(20)[:, None, None] % 10 + 1)
    monkeypatch.setattr(digits, "load_digits", lambda: (pixels, labels))
    n_named, cfg = set(), ImagesConfig(size=40)
    for index in range(50):
        record = digits.draw(np.arange(10, 20), cfg, "train", index)
        parts = record.text.split(", ")
        n_named.add(len(parts))
        corners = record.image.reshape(2, 20, 2, 20).max(axis=(1, 3)).ravel()
        named = {place: word for word, place in (part.split(" ", 1) for part in parts)}
        for place, value in zip(digits.PLACES, corners, strict=True):
            expected = digits.WORDS.index(named[place]) + 1 if place in named else 0
            assert value == round(expected * 255 / 16), record.text
        again = digits.draw(np.arange(10, 20), cfg, "train", index)
        assert isinstance(record, ImageText) and again.image_hash == record.image_hash
    assert n_named == {2, 3, 4}
    ramp = np.arange(8.0)[None].repeat(8, 0)
    np.testing.assert_allclose(digits.enlarge(ramp, 8), ramp)
    assert np.all(np.diff(digits.enlarge(ramp, 13), axis=1) >= 0)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    digits.load_digits.cache_clear()
    with pytest.raises(ConfigError, match="scikit-learn.*isoflop\\[images\\]"):
        digits.load_digits()
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ConfigError, match="Pillow.*isoflop\\[images\\]"):
        decode.require_pillow()


def test_neither_a_handwritten_digit_nor_a_caption_is_in_two_splits(monkeypatch):
    pytest.importorskip("sklearn")
    draw, drawn, captions = digits.draw, {}, {}

    def note(sources, cfg, split, index):
        drawn.setdefault(split, set()).update(sources.tolist())
        record = draw(sources, cfg, split, index)
        captions.setdefault(split, []).append(record.text)
        return record

    monkeypatch.setattr(digits, "draw", note)
    counts = [split for split, _ in digits.iter_records(ImagesConfig(size=16, count=1000))]
    assert [counts.count(split) for split in digits.SPLITS] == [1000, 1000, 1000]
    assert sum(map(len, drawn.values())) == len(set.union(*drawn.values())) == 1797
    different = {split: set(texts) for split, texts in captions.items()}
    assert sum(map(len, different.values())) == len(set.union(*different.values()))
    # Single digits at their places are in all splits.
    parts = {split: {p for t in texts for p in t.split(", ")} for split, texts in captions.items()}
    assert {len(names) for names in parts.values()} == {40}
    # Groups of 100 different captions need some hundreds of them.
    assert min(len(different[split]) for split in ("valid", "test")) > 500
