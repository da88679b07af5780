"""Planning a data set: patients, ids and diagnoses, before any radiograph is drawn."""

import uuid
from dataclasses import dataclass

import numpy as np

POSITIVE_SHARE = 0.3
IMAGES_PER_PATIENT = (1, 1, 2, 2, 3, 4)  # one of these, at random
DOUBLE_READING = 5  # every fifth positive was outlined by two readers, whose rows overlap


@dataclass(frozen=True)
class Patient:
    """An invented person; `number` seeds the anatomy."""

    number: int
    identifier: str
    sex: str
    age: int


@dataclass(frozen=True)
class Radiograph:
    """One radiograph to draw: its ids, its patient, and what it shows.

    A test image has no study and series, and its files do not name the patient.
    """

    image_id: str
    study_uid: str
    series_uid: str
    sop_uid: str
    patient: Patient
    test: bool
    seed: int
    size: int
    positive: bool
    double_reading: bool


@dataclass(frozen=True)
class Plan:
    """The radiographs of a data set, each group sorted by image id."""

    train: list[Radiograph]
    unlabelled: list[Radiograph]
    test: list[Radiograph]


def plan(
    train_images: int, unlabelled_images: int, test_images: int, *, seed: int, size: int
) -> Plan:
    """The same arguments always plan the same radiographs."""
    rng = np.random.default_rng([seed, 0])
    taken: set[int] = set()

    def radiographs(n_images: int, *, test: bool) -> list[Radiograph]:
        positive = _positives(rng, n_images)
        rank = np.cumsum(positive)
        made = [
            _radiograph(
                rng,
                patient,
                size=size,
                test=test,
                positive=bool(positive[index]),
                double_reading=bool(rank[index] % DOUBLE_READING == 1),
            )
            for index, patient in enumerate(_patients(rng, n_images, taken))
        ]
        return sorted(made, key=lambda radiograph: radiograph.image_id)

    train = radiographs(train_images, test=False)
    unlabelled = radiographs(unlabelled_images, test=False)
    return Plan(train, unlabelled, radiographs(test_images, test=True))


def _positives(rng: np.random.Generator, n_images: int) -> np.ndarray:
    """(n_images,) bool in random order; a share of POSITIVE_SHARE is true."""
    return rng.permutation(n_images) < round(POSITIVE_SHARE * n_images)


def _patients(rng: np.random.Generator, n_images: int, taken: set[int]) -> list[Patient]:
    """The patient of each image. Consecutive images often share one. Updates `taken`."""
    patients: list[Patient] = []
    while len(patients) < n_images:
        number = int(rng.integers(2**31))
        if number in taken:
            continue
        taken.add(number)
        identifier = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        patient = Patient(
            number, identifier, sex=str(rng.choice(["M", "F"])), age=int(rng.integers(18, 88))
        )
        patients += [patient] * int(rng.choice(IMAGES_PER_PATIENT))
    return patients[:n_images]


def _radiograph(
    rng: np.random.Generator,
    patient: Patient,
    *,
    size: int,
    test: bool,
    positive: bool,
    double_reading: bool,
) -> Radiograph:
    study, series, sop = (f"2.25.{int.from_bytes(rng.bytes(15), 'big')}" for _ in range(3))
    return Radiograph(
        image_id=f"ID_{rng.bytes(5).hex()[:9]}" if test else sop,
        study_uid="" if test else study,
        series_uid="" if test else series,
        sop_uid=sop,
        patient=patient,
        test=test,
        seed=int(rng.integers(2**31)),
        size=size,
        positive=positive,
        double_reading=double_reading,
    )
