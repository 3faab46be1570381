"""ImageNet and Tiny-ImageNet: one folder of pictures per class, decoded on demand."""

from pathlib import Path
from typing import ClassVar

import torch

from bench_core.data.base import ImageSplit
from bench_core.data.checked_files import remedy
from bench_core.data.folders import data_folder
from bench_core.data.images import ImageDataset
from bench_core.data.pictures import LazyPictures, class_folders, pictures_in
from bench_core.data.splits import cut_by_rank, frozen
from bench_core.errors import DataError

__all__ = ["ImageNet", "TinyImageNet"]

_TERMS = "ImageNet terms of access: research and education, not commercial"
_REFERENCE = "Deng et al., CVPR 2009; Russakovsky et al., IJCV 2015"


class ImageNet(ImageDataset):
    """ILSVRC 2012: a thousand classes; the shorter side is resized to 256 pixels and the middle 224 x 224 cropped.

    ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``; classes and files in sorted order. The official validation
    images are the test split, since labels of the official test images were never published. 50 images of each class
    are cut from train for calibration. Training uses the middle crop too, shifted and mirrored as the recipe specifies.
    """

    name = "imagenet"
    classes = 1000
    input_shape = (3, 224, 224)
    licence = _TERMS
    reference = _REFERENCE
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean_color = (124, 116, 104)
    cuts: tuple[str, ...] = ("imagenet-calibration-ranks",)
    content = {"crop": 224, "resize": 256, "files": "ILSVRC2012"}
    resize: ClassVar[int | None] = 256
    samples: ClassVar[dict[str, int]] = {"train": 1_281_167, "val": 50_000}
    how_to: ClassVar[str] = "`exitbench data fetch imagenet` says what to put where"

    def read_split(self, name: str) -> ImageSplit:
        """Return the split ``name`` with lazily decoded pictures. Raises DataError if folders or files are missing."""
        part = "val" if name == "test" else "train"
        paths, labels = self._listed(part)
        self._check_count(part, len(paths))
        positions = torch.arange(len(paths))
        if name != "test":
            kept, cut = cut_by_rank(labels, frozen(self.cuts[0]))
            positions = cut if name == "calibration" else kept
        chosen = [paths[position] for position in positions.tolist()]
        images = LazyPictures(self._folder(part), chosen, crop=self.input_shape[1], resize=self.resize)
        return ImageSplit(name, images, labels[positions], positions)

    def _folder(self, part: str) -> Path:
        return data_folder(self.name) / part

    def _listed(self, part: str) -> tuple[list[str], torch.Tensor]:
        """Return paths and labels of all pictures of ``train`` or ``val``, in the order of the sample ids."""
        folder = self._folder(part)
        paths, labels = [], []
        for label, name in enumerate(class_folders(folder, self.classes, self.how_to)):
            found = [f"{name}/{file}" for file in self._pictures(folder / name)]
            paths += found
            labels += [label] * len(found)
        return paths, torch.tensor(labels)

    def _pictures(self, folder: Path) -> list[str]:
        return pictures_in(folder, self.how_to)

    def _check_count(self, part: str, found: int) -> None:
        if found != (expected := self.samples[part]):
            raise DataError(f"{self._folder(part)}: {found:,} pictures, expected {expected:,}; {self.how_to}")


class TinyImageNet(ImageNet):
    """200 classes of 64 x 64 pictures; the official validation images are the test split."""

    name = "tiny-imagenet"
    classes = 200
    input_shape = (3, 64, 64)
    reference = "Le and Yang, Tiny ImageNet Visual Recognition Challenge, 2015"
    mean, deviation = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    mean_color = (122, 114, 101)
    cuts = ("tiny-imagenet-calibration-ranks",)
    content = {"archive": "md5:90528d7ca1a48142e341f4ef8d21d0de"}
    resize = None
    samples = {"train": 100_000, "val": 10_000}
    how_to = remedy("tiny-imagenet")

    def _pictures(self, folder: Path) -> list[str]:
        return [f"images/{name}" for name in pictures_in(folder / "images", self.how_to)]

    def _listed(self, part: str) -> tuple[list[str], torch.Tensor]:
        if part == "train":
            return super()._listed(part)
        classes = {name: label for label, name in enumerate(class_folders(self._folder("train"), 200, self.how_to))}
        annotations = self._folder("val") / "val_annotations.txt"
        try:
            lines = annotations.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{annotations}: can't be read ({error}); {self.how_to}") from error
        paths, labels = [], []
        for number, line in enumerate(lines, start=1):
            file, _, rest = line.partition("\t")
            label = classes.get(rest.partition("\t")[0])
            if label is None or Path(file).name != file:
                raise DataError(f"{annotations}, line {number}: no class of train/ in {line!r:.60}; {self.how_to}")
            paths.append(f"images/{file}")
            labels.append(label)
        missing = set(paths) - {f"images/{name}" for name in pictures_in(self._folder("val") / "images", self.how_to)}
        if missing:
            raise DataError(f"{self._folder('val') / min(missing)}: missing; {self.how_to}")
        return paths, torch.tensor(labels)
