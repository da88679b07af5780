"""What is below the input folder, and what is left out and said."""

import shutil

import cv2
import numpy as np
import pytest

from pneumothorax.data import discovery
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise
from tests.helpers.stages import run_stage, tiny_input

LITTER = [
    *"._a.dcm .DS_Store __MACOSX/a.dcm lost+found/a.dcm".split(),
    *"study/@eaDir/a.dcm/SYNOPHOTO.jpg study/Thumbs.db".split(),
]


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def linked(tmp_path):
    """A folder with one image, and links: to an image, to a folder of one, and in a circle."""
    write_dicom(tmp_path / "elsewhere" / "b.dcm", noise(2))
    folder = tmp_path / "in"
    write_dicom(folder / "a.dcm", noise(1))
    (folder / "b.dcm").symlink_to(tmp_path / "elsewhere" / "b.dcm")
    (folder / "bare").symlink_to(tmp_path / "elsewhere" / "b.dcm")
    (folder / "study").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder / "circle")
    return folder


# Links


def test_links_that_are_not_followed_are_counted_and_named_with_the_flag(linked):
    found = discovery.search(linked, any_name=True)
    assert names(found.images, linked) == ["a.dcm"]
    assert found.notes() == [
        "3 links are not followed (--follow-symlinks also reads links): b.dcm, bare, study"
    ]
    found = discovery.search(linked, any_name=True, follow_symlinks=True)
    assert names(found.images, linked) == ["a.dcm", "b.dcm", "bare", "study/b.dcm"]
    assert found.notes() == []


def test_a_folder_of_nothing_but_links_names_the_flag(linked):
    (linked / "a.dcm").unlink()
    with pytest.raises(BadInput, match=r"(?s)holds no DICOM.*--follow-symlinks"):
        discovery.search(linked)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("data.zip", r"1 archive is not read \(unpack what you need\): data\.zip$"),
        ("a.dcm.gz", r"1 archive is not read \(unpack what you need\): a\.dcm\.gz$"),
        ("IM0001", r"found IM0001, a DICOM file: give such files the suffix \.dcm$"),
    ],
)
def test_where_no_image_is_found_the_files_that_hold_some_are_named(tmp_path, name, advice):
    whole = write_dicom(tmp_path / "a.dcm", noise(1)).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / name).write_bytes(whole if name == "IM0001" else b"packed")
    with pytest.raises(BadInput, match=advice):
        discovery.search(tmp_path / "in")


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir"])  # Linux shows the names of disks so
def test_the_directory_of_a_disk_is_not_taken_for_an_image(tmp_path, name):
    write_dicom(tmp_path / "IM0001", noise(1)).rename(tmp_path / name)
    write_dicom(tmp_path / "IM0002", noise(2))
    found = discovery.search(tmp_path, any_name=True)
    assert names(found.images, tmp_path) == ["IM0002"]


def test_a_broken_link_is_no_file_and_nothing_to_follow(tmp_path):
    write_dicom(tmp_path / "a.dcm", noise(1))
    (tmp_path / "b.dcm").symlink_to(tmp_path / "gone.dcm")
    found = discovery.search(tmp_path)
    assert names(found.not_files, tmp_path) == ["b.dcm"]
    assert found.notes() == []


def test_many_links_are_counted_and_the_first_named(tmp_path):
    write_dicom(tmp_path / "a.dcm", noise(1))
    for number in range(7):
        (tmp_path / f"link{number}").symlink_to(tmp_path, target_is_directory=True)
    [note] = discovery.search(tmp_path).notes()
    assert note.startswith("7 links")
    assert note.endswith(": link0, link1, link2, link3, link4, and 2 more")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("a.dcm", "a link: --follow-symlinks follows it"),
        ("gone", "a link, and not to a regular file"),
        (None, "not a regular file"),
    ],
)
def test_a_rejected_link_says_whether_following_helps(tmp_path, target, said):
    write_dicom(tmp_path / "a.dcm", noise(1))
    path = tmp_path / "x.dcm"
    path.symlink_to(tmp_path / target) if target else path.mkdir()
    [other] = discovery.search(tmp_path).not_files
    assert discovery.why_not_a_file(other) == said


# Litter


def test_what_systems_and_disk_servers_leave_behind_is_skipped_and_counted(tmp_path):
    write_dicom(tmp_path / "study" / "a.dcm", noise(1))
    for name in [*LITTER, "._b.dcm", "masks/._a.png"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\26\7")
    found = discovery.search(tmp_path, any_name=True)
    assert names(found.images, tmp_path) == ["study/a.dcm"]
    assert found.not_files == ()
    assert found.notes() == [
        "not read, as an operating system or a disk server made them: 1 .DS_Store, 3 ._*, "
        "1 @eaDir, 1 Thumbs.db, 1 __MACOSX, 1 lost+found"
    ]
    assert discovery.images_below(tmp_path / "masks", follow_symlinks=False) == ()


def test_litter_is_no_error_of_stage_00(tmp_path, capsys):
    tiny = tiny_input(tmp_path / "in", train=4, test=0)
    for path in list(tiny.folder.rglob("*.dcm")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    run_stage(
        "00_prepare_data.py",
        *("--input", tiny.folder, "--output", tmp_path / "out", "--size", 32, "--workers", 0),
    )
    assert "5 ._*" in capsys.readouterr().out  # 4 training images and the unlabelled one
    assert artifacts.read_table(tmp_path / "out", artifacts.REJECTED)["code"].tolist() == [
        "UNLABELLED"
    ]


# Our own output


@pytest.mark.parametrize("mark", ["prepare.json", ".locks/", "dicom-journal.jsonl"])
def test_output_below_the_input_is_never_taken_for_input(tmp_path, mark):
    write_dicom(tmp_path / "a.dcm", noise(1))
    for kind in ("images", "masks"):
        png(tmp_path / "results" / "cache" / kind / "b.png", noise(2))
    made = tmp_path / "results" / mark
    made.mkdir() if mark.endswith("/") else made.write_text("{}")
    found = discovery.search(tmp_path)
    assert names(found.images, tmp_path) == ["a.dcm"]
    assert found.notes() == ["1 folder is output of this software, so not read: results"]


def test_an_output_folder_is_refused_as_input(tmp_path):
    png(tmp_path / "cache" / "images" / "b.png", noise(2))
    (tmp_path / "prepare.json").write_text("{}")
    with pytest.raises(BadInput, match=r"is the output of 00_prepare_data\.py"):
        discovery.search(tmp_path)


def test_every_output_folder_has_a_mark_even_without_its_hidden_files(tmp_path):
    tiny = tiny_input(tmp_path / "in", train=4, test=0)
    run_stage(
        "00_prepare_data.py",
        *("--input", tiny.folder, "--output", tmp_path / "out", "--size", 32, "--workers", 0),
    )
    shutil.rmtree(tmp_path / "out" / ".locks")
    shutil.copytree(tmp_path / "out", tiny.folder / "copy")
    found = discovery.search(tiny.folder)
    assert len(found.images) == 5
    assert names(found.outputs, tiny.folder) == ["copy"]


# Masks


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("masks", "a.png"),
        ("png_masks", "a.png"),
        ("labelsTr", "a.png"),
        ("Masks/1", "a.jpg"),
        ("segmentation data/masks", "a.png"),
    ],
)
def test_folders_of_masks_are_known_by_name_and_content(tmp_path, folder, file):
    png(tmp_path / "images" / "a.png", noise(1))
    png(tmp_path / "segmentation data" / "images" / "a.png", noise(2))
    mask = disc(64, 30, 30, 12)
    png(tmp_path / folder / file, mask if folder == "labelsTr" else 255 * mask)
    masks = discovery.masks(discovery.search(tmp_path))
    assert names(masks, tmp_path) == [folder.removesuffix("/1")]


def test_radiographs_in_a_folder_named_like_masks_stay_radiographs(tmp_path):
    png(tmp_path / "images" / "a.png", noise(1))
    png(tmp_path / "unmasked" / "b.png", np.clip(noise(2), 20, 235))
    png(tmp_path / "labelled" / "c.png", np.zeros((64, 64), np.uint8))
    png(tmp_path / "labelled" / "d.png", noise(3))
    assert discovery.masks(discovery.search(tmp_path)) == {}


def test_the_folder_that_is_given_is_no_folder_of_masks(tmp_path):
    png(tmp_path / "masks" / "a.png", 255 * disc(64, 30, 30, 12))
    assert discovery.masks(discovery.search(tmp_path / "masks")) == {}


@pytest.mark.parametrize("folder", ["in", "in/labelled"])
def test_masks_beside_their_radiographs_are_known_by_name_and_content(tmp_path, folder):
    folder = tmp_path / folder
    mask = 255 * disc(64, 30, 30, 12)
    for name in ("a_mask.png", "LABEL_b.png"):
        png(folder / name, mask)
    for name in ("a.png", "masked.png"):
        png(folder / name, noise(1))
    png(folder / "c.png", mask)  # nothing in its name says so
    found = discovery.masks(discovery.search(tmp_path / "in"))
    assert found == {folder: [folder / "LABEL_b.png", folder / "a_mask.png"]}
